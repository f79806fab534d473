"""What ranks really say to one another in a step of training: every collective, with its bytes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import state_jobs
import torch.distributed as dist
import transom
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from transom.distributed.mesh import ParallelMesh
from transom.training.corpus import Split
from transom.training.objective import objective_of
from transom.training.team import RankTeam
from transom.training.token_sequence import TokenSequence
from transom.training.trainer import Trainer
from transom.training.world import split_over

Counted = dict[tuple[str, str], list[int]]
"""By axis and operation, how many calls and how many bytes."""

_BASE = {"allreduce_": "all_reduce", "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter"}
_FUNCTIONAL = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}


class CountBytes(TorchDispatchMode):
    """Counts the collectives of a rank, those of torch's data parallelism too.

    Args:
        axes: of the mesh, and this rank's ranks along them.
    """

    def __init__(self, axes: dict[str, set[int]]) -> None:
        super().__init__()
        self.axes = axes
        self.counted: Counted = defaultdict(lambda: [0, 0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname
        if func.namespace == "_c10d_functional" and name in _FUNCTIONAL:
            times = args[1] if name == "all_gather_into_tensor" else 1
            self._count(_FUNCTIONAL[name], _resolve_process_group(args[-1]), args[0].nbytes * times)
        elif func.namespace == "c10d":
            self._count_base(name, args)
        return func(*args, **(kwargs or {}))

    def _count_base(self, name: str, args: Any) -> None:
        if name == "recv_":
            return
        place = 1 if name in ("allreduce_", "send") else 2
        whole = args[1] if name == "_reduce_scatter_base_" else args[0]
        size = sum(tensor.nbytes for tensor in ([whole] if isinstance(whole, Tensor) else whole))
        self._count(_BASE.get(name, name), dist.ProcessGroup.unbox(args[place]), size)

    def _count(self, operation: str, group: dist.ProcessGroup, size: int) -> None:
        ranks = set(dist.get_process_group_ranks(group))
        if len(ranks) == 1:
            return
        axis = next((axis for axis, along in self.axes.items() if ranks <= along), "all")
        found = self.counted[axis, operation]
        found[0] += 1
        found[1] += size


def measured(described: dict[str, Any], sizes: dict[str, int], group: dist.ProcessGroup) -> Counted:
    """Count what this rank says in the second of two steps, beside what it says to itself alone."""
    mesh: Any = state_jobs.mesh_of(sizes)
    team, trainer = prepared(described, mesh)
    trainer.train_step()
    axes = {name: set(dist.get_process_group_ranks(mesh.group(name))) for name in ("tp", "pp")}
    axes["dp"] = set(dist.get_process_group_ranks(mesh.data.get_group()))
    with CountBytes(axes) as mode:
        team.any(False)
        trainer.train_step()
    return dict(mode.counted)


def prepared(described: dict[str, Any], mesh: ParallelMesh) -> tuple[RankTeam, Trainer]:
    spec = transom.load_spec(described)
    team = RankTeam(mesh)
    model = team.built(transom.plan(split_over(spec, mesh.sizes)), 0, "cpu")
    length = spec.train.sequence_length or spec.max_sequence_length
    tokens = TokenSequence([np.arange(20 * length, dtype=np.uint16) % (spec.vocab_size // 2)])
    split = Split(tokens, tokens)
    objective = objective_of(spec, length)
    return team, Trainer(model, spec.train, split, sequence_length=length, team=team, objective=objective)
