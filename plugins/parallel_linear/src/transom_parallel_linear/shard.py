"""Which part of a whole weight a rank holds, how it rests, and how it gets its first values.

Over several ranks a weight rests as a DTensor, so that torch's data parallelism and distributed checkpoints know which
part of what it is; what computes takes its local tensor. Stacked matrices rest as ``[stride, width, ...]``, each split
along its own rows: a split that every mesh and every number of ranks can express, unlike that of the two-dimensional
weight. State dicts show them stacked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as SplitAlong
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter
from transom.errors import ParallelError
from transom.transformer.collectives import Ranks
from transom.transformer.initialization import initialize
from transom.transformer.meshes import mesh_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig

__all__ = ["Shard", "uneven"]


def uneven(width: int, stride: int, ranks: int) -> str | None:
    """Say why a dimension cannot be split evenly; `None` when it can.

    Args:
        width: of the dimension over all ranks.
        stride: how many logical matrices are stacked in it; each is split by itself.
        ranks: p, among how many.

    Example:
        >>> uneven(12, 2, 4)
        '6 (half of 12) is not a multiple of 4 ranks'
        >>> uneven(12, 1, 4) is None
        True
    """
    if width % stride:
        return f"{width} does not divide into {stride} stacked matrices"
    logical = width // stride
    if logical % ranks == 0:
        return None
    whole = "" if stride == 1 else f" (half of {width})" if stride == 2 else f" ({width} / {stride})"
    return f"{logical}{whole} is not a multiple of {ranks} ranks"


@dataclass(frozen=True)
class Shard:
    """The part of a whole tensor that a rank holds.

    The whole stacks ``stride`` logical matrices along ``dim`` (a fused gate and up projection: 2); each is split over
    the ranks by itself, so that rank r of ``[gate; up]`` holds ``[gate_r; up_r]``.

    Args:
        ranks: among whom.
        dim: that is split.
        stride: how many logical matrices are stacked along it.

    Example:
        >>> whole = torch.arange(8)  # two matrices: 0-3 and 4-7
        >>> Shard(Ranks("", 2, 1), dim=0, stride=2).of(whole)
        tensor([2, 3, 6, 7])
    """

    ranks: Ranks
    dim: int = 0
    stride: int = 1

    def of(self, whole: Tensor) -> Tensor:
        """This rank's part of ``whole``."""
        matrices = torch.unflatten(whole, self.dim, (self.stride, -1))  # [.., stride·w, ..] -> [.., stride, w, ..]
        return self.ranks.part(matrices, self.dim + 1).flatten(self.dim, self.dim + 1)

    def width(self, whole: int, *, name: str, of: str) -> int:
        """Width of the part of a dimension that is ``whole`` wide.

        Args:
            whole: width over all ranks.
            name: what the width is called, for the error.
            of: whose width it is, for the error.

        Raises:
            ParallelError: it does not divide evenly.
        """
        reason = uneven(whole, self.stride, self.ranks.size)
        if reason is not None:
            raise ParallelError(
                f"{name} of {of} cannot be split: {reason}.",
                hint=f"a {name} that is a multiple of {self.stride * self.ranks.size}, or fewer tensor-parallel ranks",
                size=whole,
                stride=self.stride,
                ranks=self.ranks.size,
            )
        return whole // self.ranks.size

    def rest(self, part: Tensor, group: ProcessGroup | None) -> Parameter:
        """Make the parameter that this rank's part rests in.

        Args:
            part: whose memory the parameter shares.
            group: the ranks.

        Returns:
            ``part`` itself on one rank; else a DTensor over the group, ``[stride, width, ...]`` for stacked matrices.
        """
        if group is None or self.ranks.size == 1:
            return Parameter(part)
        mesh = mesh_of(group, part.device.type)
        return Parameter(DTensor.from_local(self._apart(part), mesh, [SplitAlong(self._split_dim)], run_check=False))

    def local(self, parameter: Tensor) -> Tensor:
        """Give this rank's part of a parameter in the shape that computes: of ``[gate_r; up_r]``, both in one matrix.

        Gradients flow back into the parameter.
        """
        if not isinstance(parameter, DTensor):
            return parameter
        local = parameter.to_local()
        return local.flatten(self.dim, self.dim + 1) if self._is_stacked else local

    def like(self, parameter: Tensor, part: Tensor) -> Tensor:
        """Make of a part, in the shape that computes, a tensor that is split as a parameter is."""
        if not isinstance(parameter, DTensor):
            return part
        return DTensor.from_local(self._apart(part), parameter.device_mesh, parameter.placements, run_check=False)

    def shown(self, parameter: Tensor) -> Tensor:
        """Give a parameter as state dicts show it, stacked matrices in one dimension; the memory is the parameter's.

        What data parallelism splits further is shown as it rests: no stacked form expresses that.
        """
        if not self._is_stacked or not isinstance(parameter, DTensor) or parameter.device_mesh.ndim > 1:
            return parameter
        placement = _StridedShard(self.dim, split_factor=self.stride)
        shape = torch.Size((*parameter.shape[: self.dim], -1, *parameter.shape[self.dim + 2 :]))
        shape = torch.empty(parameter.shape, device="meta").view(shape).shape
        local = parameter.to_local().flatten(self.dim, self.dim + 1)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, parameter.device_mesh, [placement], run_check=False, shape=shape, stride=stride
        )

    def hidden(self, shown: Tensor, parameter: Tensor) -> Tensor:
        """Undo `shown`: bring a tensor of a state dict into the form of a parameter.

        Args:
            shown: as `shown` gave it, or a plain tensor: this rank's part or the whole.
            parameter: that it is for.
        """
        if not isinstance(parameter, DTensor) or (isinstance(shown, DTensor) and shown.shape == parameter.shape):
            return shown
        part = shown.to_local() if isinstance(shown, DTensor) else shown
        local = self.local(parameter).shape
        is_whole = part.shape != local and part.dim() == len(local)
        return self.like(parameter, self.of(part) if is_whole else part)

    @property
    def _is_stacked(self) -> bool:
        """Whether parameters rest with a dimension for the matrices that are stacked in them."""
        return self.stride > 1 and self.ranks.size > 1

    @property
    def _split_dim(self) -> int:
        """Along which dimension of the resting parameter the ranks split."""
        return self.dim + 1 if self._is_stacked else self.dim

    def _apart(self, part: Tensor) -> Tensor:
        """Give stacked matrices a dimension of their own."""
        return torch.unflatten(part, self.dim, (self.stride, -1)) if self._is_stacked else part

    @torch.no_grad()
    def fill(self, part: Tensor, init_method: Callable[[Tensor], Any], config: TransformerConfig) -> None:
        """Give a part its first values: those that it would have in a single process.

        Every rank draws the whole tensor from its generator, which must be in the same state everywhere, and keeps
        its part; afterwards all generators are in the state that a single process's would be in.

        Args:
            part: this rank's parameter, as `rest` made it, filled in place; nothing happens on the meta device.
            init_method: fills a tensor in place.
            config: whether to draw, and where.
        """
        if self.ranks.size == 1:
            initialize(part, init_method, config)
        elif config.perform_initialization and not part.is_meta:
            local = self.local(part)
            shape = list(local.shape)
            shape[self.dim] *= self.ranks.size
            device = "cpu" if config.use_cpu_initialization else local.device
            whole = torch.empty(shape, dtype=local.dtype, device=device)
            initialize(whole, init_method, config)
            local.copy_(self.of(whole))
