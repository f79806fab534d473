"""Steps that all ranks must succeed in: where one fails, every rank raises, and none waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from transom.errors import ParallelError, TransomError

__all__ = ["together", "told_by_first"]


@contextmanager
def together(group: ProcessGroup | None) -> Iterator[None]:
    """Let every rank raise what the first of those that fail raises.

    Every rank of the group enters it, and none leaves before all are through. Nothing inside may wait for other ranks
    of the group after a point at which a rank may fail.

    Args:
        group: the ranks; `None` = one process, where errors pass as they are.

    Raises:
        TransomError: of the lowest rank that failed.
        ParallelError: that rank failed for a reason that is no `TransomError`, with its text; or a rank is gone.
    """
    if group is None:
        yield
        return
    failed: Exception | None = None
    try:
        yield
    except Exception as error:  # told to all, and raised below
        failed = error
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, None if failed is None else _portable(failed), group=group)
    first = next((error for error in told if error is not None), None)
    if first is not None:
        first.is_told_to_all = True
        raise first from failed


def told_by_first(value: Any, group: ProcessGroup | None) -> Any:
    """Give every rank what the first one has; only there ``value`` matters.

    Args:
        value: that can be pickled.
        group: the ranks; `None` = one process.
    """
    if group is None:
        return value
    told = [value]
    dist.broadcast_object_list(told, group=group, group_src=0)
    return told[0]


def _portable(error: Exception) -> Exception:
    if isinstance(error, TransomError):
        return error
    rank = dist.get_rank()
    return ParallelError(f"rank {rank} failed: {type(error).__name__}: {error}", rank=rank)
