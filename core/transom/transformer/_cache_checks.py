"""What a key/value cache refuses: sizes, positions and batches that cannot be what was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transom.errors import CacheError

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCacheRequest
    from transom.transformer.kv_cache import KVCache

__all__ = ["check_positions", "check_sizes", "inspect_positions", "read_aligned", "refuse_overflow", "sizes_of"]


def check_sizes(kind: str, **sizes: int) -> None:
    """Refuse sizes below one."""
    for name, size in sizes.items():
        if size < 1:
            raise CacheError(f"{name} is {size}; a cache needs at least 1.", asked_by=f"{kind}.{name}")


def sizes_of(
    request: KVCacheRequest,
    batch_size: int,
    capacity: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> dict[str, Any]:
    """Give the arguments that all of core's caches take for a request."""
    return {
        "num_layers": len(request.windows),
        "batch_size": batch_size,
        "capacity": capacity,
        "num_query_groups": request.num_query_groups,
        "head_size": request.head_size,
        "value_head_size": request.value_head_size,
        "dtype": dtype or getattr(torch, request.context.dtype),
        "device": device,
    }


def check_positions(positions: Tensor | None, batch_size: int) -> Tensor:
    """Refuse positions that are missing or have another shape than ``[s]`` or ``[b, s]``; return them."""
    if positions is None:
        raise CacheError(
            "a cache needs the positions of the tokens, and none are given.",
            hint="pass input_pos: 0 ... s-1 for a prompt, then one more a token",
        )
    if positions.dim() not in (1, 2) or (positions.dim() == 2 and positions.shape[0] != batch_size):
        raise CacheError(
            f"positions must have shape [s] or [b, s] with b = {batch_size}, not {list(positions.shape)}.",
        )
    return positions


def refuse_overflow(cache: KVCache, batch_size: int, length: int) -> None:
    """Refuse more positions or rows than a cache has."""
    if length > cache.capacity:
        raise CacheError(
            f"{length} positions are asked for and the cache holds {cache.capacity}.",
            hint=f"allocate a cache with capacity={length}, or generate fewer tokens",
            capacity=cache.capacity,
            asked=length,
        )
    if batch_size > cache.batch_size:
        raise CacheError(
            f"{batch_size} rows are asked for and the cache holds {cache.batch_size}.",
            hint=f"allocate a cache with batch_size={batch_size}, or split the batch",
            capacity=cache.batch_size,
            asked=batch_size,
        )


def read_aligned(cache: KVCache, positions: Tensor, used: Tensor) -> int | None:
    """Read on the host where a step begins whose rows all have the same positions, one after another.

    That is what generation does, and a few numbers in Python cost less than as many operations on a device.

    Args:
        cache: that they are for.
        positions: ``[s]`` or ``[b, s]``.
        used: ``[b]``, positions of each row in use before.

    Returns:
        the first position; `None` = it is no such step, or does not fit: `inspect_positions` says how.
    """
    if positions.dim() == 2 and len(positions) > 1:
        return None
    told = positions.flatten().tolist()
    start, end = told[0], told[0] + len(told)
    follows = start >= 0 and end <= cache.capacity and told == list(range(start, end))
    # A ring that has forgotten what is before the step is looked at closer.
    return start if follows and min(used.tolist()) >= start and not cache.windows else None


def inspect_positions(cache: KVCache, rows: Tensor, first: Tensor, used: Tensor) -> tuple[int, bool]:
    """Read on the host how many positions the layers read, and whether those of the step are the last in every row.

    Args:
        cache: that they are for.
        rows: positions ``[b or 1, s]``.
        first: ``[b or 1]``, the first of each row; the capacity where all is padding.
        used: ``[b]``, positions of each row in use before.

    Raises:
        CacheError: they do not fit, or leave a gap, or go back to what a window has forgotten.
    """
    end = int(rows.max()) + 1
    cache.check(len(used), end)
    gap = (first > used) & (first < cache.capacity)
    if bool(gap.any()):
        row = int(gap.nonzero()[0])
        start, held = int(first.expand_as(used)[row]), int(used[row])
        raise CacheError(
            f"row {row} goes on at position {start}, and the cache holds {held} positions of it.",
            hint="positions follow each other: run the tokens before it first",
            asked=start,
        )
    if cache.windows:
        cache.check_kept(first.expand_as(used), cache.reached[: len(used)])
    s = rows.shape[1]
    return max(end, 1), bool((rows == torch.arange(end - s, end, device=rows.device)).all())
