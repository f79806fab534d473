"""What one rank of a pipeline has of a model, as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from transom.distributed.mesh import ParallelMesh
from transom.transformer.sharding import Offset, ShardedStateDict, sharded_state_of

__all__ = ["RankStages"]


@final
class RankStages(nn.Module):
    """The stages of a model that are on one rank: what optimizer, checkpoints and gradient norm take for a model.

    Names in its sharded state are those of the whole model, whatever the cut.

    Args:
        stages: one, or the virtual stages in order, which satisfy `transom.slots.model.ModelStage`.
        mesh: of the ranks, which all make one.
    """

    def __init__(self, stages: Sequence[nn.Module], mesh: ParallelMesh) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._group = mesh.group("pp")
        held: list[Any] = [None] * mesh.sizes.pp
        dist.all_gather_object(held, sorted({name for name, _ in self._shared()}), group=self._group)
        places = {name: tuple(i for i, names in enumerate(held) if name in names) for name in chain(*held)}
        self._places = {name: ranks for name, ranks in sorted(places.items()) if len(ranks) > 1}
        self._copied = {name for name, ranks in self._places.items() if ranks[0] != mesh.place("pp")}
        self._groups = self._groups_of(set(self._places.values()), mesh)

    def copies(self) -> Iterator[nn.Parameter]:
        """Give the parameters that a stage of another rank owns."""
        yield from (parameter for name, parameter in self._shared() if name in self._copied)

    @torch.no_grad()
    def sum_shared_gradients(self) -> None:
        """Add up the gradients of what several ranks of the pipeline have; all of them call it, once a step."""
        own = {name: parameter for name, parameter in self._shared() if parameter.requires_grad}
        for name, places in self._places.items():
            if name not in own:
                continue
            parameter = own[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient: Tensor = parameter.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            dist.all_reduce(local, group=self._groups[places])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Offset, ...] = (), metadata: Mapping[str, Any] | None = None
    ) -> ShardedStateDict:
        """Describe the state of all stages, as `transom.transformer.sharding` does."""
        found: ShardedStateDict = {}
        for stage in self.stages:
            found |= sharded_state_of(stage, prefix, sharded_offsets, metadata)
        return found

    def _shared(self) -> Iterator[tuple[str, nn.Parameter]]:
        for stage in self.stages:
            yield from stage.shared()  # type: ignore[operator]

    def _groups_of(self, wanted: set[tuple[int, ...]], mesh: ParallelMesh) -> dict[tuple[int, ...], ProcessGroup]:
        """Give the group of the ranks at some places of this pipeline, for those that this rank is among."""
        pipelines = mesh.device_mesh.mesh.flatten(1).T.tolist()  # [pp, ...] -> a list of ranks each
        found = {}
        for places in sorted(wanted):
            if len(places) == mesh.sizes.pp:
                found[places] = self._group
                continue
            # Every rank makes the groups of all pipelines: torch names groups by how many a rank has made.
            made = {tuple(ranks): dist.new_group([ranks[i] for i in places]) for ranks in pipelines}
            if mesh.place("pp") in places:
                found[places] = made[tuple(dist.get_process_group_ranks(self._group))]
        return found
