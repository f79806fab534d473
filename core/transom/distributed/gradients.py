"""What is left to do with gradients once every rank has computed its own: sums over ranks, and their common norm."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from transom.distributed.mesh import ParallelMesh
from transom.transformer.partial_gradients import own_parameters, partial_gradients
from transom.transformer.sharding import ShardedTensor, ShardedTensorFactory, sharded_state_of

__all__ = ["GradientNorm", "sum_partial_gradients"]


@torch.no_grad()
def sum_partial_gradients(model: nn.Module, mesh: ParallelMesh) -> None:
    """Sum over the tensor-parallel ranks what each computed of a part: of norms of heads, and of tokens.

    Args:
        model: after its backward passes; parameters without gradients are left out.
        mesh: of the ranks, which all call it.
    """
    if mesh.sizes.tp == 1:
        return
    gradients = [_local(p.grad) for p in partial_gradients(model) if p.grad is not None]
    for group in _of_one_dtype(gradients):
        flat = torch.cat([gradient.flatten() for gradient in group])
        dist.all_reduce(flat, group=mesh.group("tp"))
        for gradient, summed in zip(group, torch.split(flat, [g.numel() for g in group]), strict=True):
            gradient.copy_(summed.view_as(gradient))


class GradientNorm:
    """The norm of all gradients of a model together, each counted once however many ranks hold it.

    Args:
        model: this rank's, or its `transom.distributed.stages.RankStages`; its parameters are where they will be: after
            `transom.distributed.data_parallel.shard_over_data`.
        mesh: of the ranks.
    """

    def __init__(self, model: nn.Module, mesh: ParallelMesh) -> None:
        self._mesh = mesh
        self._parameters: dict[tuple[str, ...], list[nn.Parameter]] = defaultdict(list)
        state = sharded_state_of(
            model, metadata={"tensor_parallel_rank": mesh.place("tp"), "singleton_local_shards": True}
        )
        splits = {id(entry.data): _is_split(entry) for entry in state.values()}
        splits |= {id(parameter): True for parameter in own_parameters(model)}
        self._copies = {id(parameter) for parameter in _copies(model)}
        for parameter in model.parameters():
            if parameter.requires_grad:
                over = self._split_over(parameter, splits.get(id(parameter), False))
                self._parameters[over].append(parameter)

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """Scale the gradients so that their norm is at most `largest`; every rank calls it.

        Args:
            largest: norm; infinity = leave them.

        Returns:
            the norm before, a scalar, the same on every rank.
        """
        gradients = [p.grad for group in self._parameters.values() for p in group if p.grad is not None]
        norm = self._norm(gradients)
        if largest < math.inf:
            factor = (largest / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                local = _local(gradient)
                local.mul_(factor.to(local.dtype))
        return norm

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        device = torch.device(self._mesh.device_mesh.device_type)
        total = torch.zeros((), device=device)
        # Along these dimensions ranks may hold different parts of a parameter. Every rank takes part in every sum, even
        # where it holds nothing of the kind.
        for over in ((), ("tp",), ("data",), ("data", "tp")):
            counted = [p for p in self._parameters.get(over, ()) if id(p) not in self._copies]
            found = [_local(p.grad) for p in counted if p.grad is not None]
            squares = _sum_of_squares(found, device)
            for name in over:
                dist.all_reduce(squares, group=self._mesh.group(name))
            total = total + squares
        if self._mesh.sizes.pp > 1:
            dist.all_reduce(total, group=self._mesh.group("pp"))
        return total.sqrt()

    def _split_over(self, parameter: Tensor, tensor_split: bool) -> tuple[str, ...]:
        """Name the dimensions of the mesh along which ranks hold different parts of a parameter, in order."""
        names = {"tp"} if tensor_split else set()
        if isinstance(parameter, DTensor):
            dimensions = parameter.device_mesh.mesh_dim_names or ("tp",)
            placed = zip(dimensions, parameter.placements, strict=True)
            names |= {name for name, placement in placed if isinstance(placement, Shard | _StridedShard)}
        data = names & set(self._mesh.data.mesh_dim_names or ())
        return (("data",) if data else ()) + (("tp",) if "tp" in names else ())


def _copies(model: nn.Module) -> Iterable[nn.Parameter]:
    """Give the parameters of pipeline stages that another stage owns."""
    for module in model.modules():
        copies = getattr(module, "copies", None)
        if callable(copies):
            yield from copies()


def _is_split(entry: ShardedTensor | ShardedTensorFactory) -> bool:
    """Whether the ranks' plain tensors are different parts of a whole; DTensors say so themselves."""
    if isinstance(entry.data, DTensor):
        return False
    shards = [entry] if isinstance(entry, ShardedTensor) else entry.build()
    return any(count > 1 for shard in shards for count in shard.axis_fragmentations)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sum_of_squares(gradients: list[Tensor], device: torch.device) -> Tensor:
    total = torch.zeros((), device=device)
    for group in _of_one_dtype(gradients):
        wide = torch.promote_types(group[0].dtype, torch.float32)
        total = total + torch.stack(torch._foreach_norm(group, 2.0, dtype=wide)).square().sum()
    return total


def _of_one_dtype(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype].append(tensor)
    return groups.values()
