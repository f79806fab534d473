"""Packed sequences: segments of a row, and the layout that kernels without padding take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from transom.errors import MaskError

__all__ = ["VarlenLayout", "ranks_in_segments", "runs_of_segments", "segments_of_cumulative_lengths"]


@final
@dataclass(frozen=True, eq=False)
class VarlenLayout:
    """Packed sequences as kernels without padding take them; rows of a batch lie one after another.

    Args:
        cumulative_queries: int32 ``[m + 1]``: sequence i is at tokens ``[i] ... [i + 1] - 1`` of all rows' queries.
        cumulative_keys: int32 ``[m + 1]``, the same for keys.
        max_query_length: no sequence has more queries.
        max_key_length: no sequence has more keys.
        real: bool ``[b, s]``: False where a query is padding, whose output must be zeros.
    """

    cumulative_queries: Tensor
    cumulative_keys: Tensor
    max_query_length: int
    max_key_length: int
    real: Tensor

    def of_chunk(self, start: int, stop: int, length: int, keys: int) -> VarlenLayout:
        """Derive the layout of some of each row's queries, over the first keys of it.

        Args:
            start: the first query.
            stop: the one after the last.
            length: queries and keys of a row in this layout.
            keys: of a row in the other.

        Returns:
            the layout of as many sequences; those without a token among them are empty.
        """
        return VarlenLayout(
            _cut(self.cumulative_queries, start, stop, length),
            _cut(self.cumulative_keys, 0, keys, length),
            min(self.max_query_length, stop - start),
            min(self.max_key_length, keys),
            self.real[:, start:stop],
        )


def _cut(cumulative: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Count sequences' ends, in rows of a length, among the tokens of each row from a first to a last."""
    row, place = cumulative // length, cumulative % length
    return row * (stop - start) + place.clamp(start, stop) - start


def ranks_in_segments(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Count the positions of queries ``[b, s]`` and keys ``[b, t]`` within their segments, aligned bottom-right.

    Returns:
        positions of queries and keys: keys of a segment are at 0, 1 ..., and its last query is where its last key is.
    """
    query, key = query.long(), key.long()
    ranks = _ranks(key)
    if query is key:
        return ranks, ranks
    return _ranks(query) + _sizes(key, query) - _sizes(query, query), ranks


def _ranks(segments: Tensor) -> Tensor:
    """Count, for each token, the tokens of its segment before it."""
    ordered, order = segments.sort(dim=1, stable=True)
    ranks = torch.arange(segments.shape[1], device=segments.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def _sizes(segments: Tensor, asked: Tensor) -> Tensor:
    """Count the tokens of each segment that is asked for."""
    ordered, _ = segments.sort(dim=1)
    return torch.searchsorted(ordered, asked, right=True) - torch.searchsorted(ordered, asked)


def segments_of_cumulative_lengths(cumulative: Tensor, length: int, name: str) -> Tensor:
    """Number the tokens of one row by sequence: ``[m + 1]`` to ``[1, length]``; -1 beyond the last sequence.

    Raises:
        MaskError: ``cumulative`` is not a vector of at least two integers.
    """
    integral = not (cumulative.is_floating_point() or cumulative.is_complex() or cumulative.dtype is torch.bool)
    if cumulative.dim() != 1 or len(cumulative) < 2 or not integral:
        raise MaskError(
            f"{name} must be integers [m + 1], not {cumulative.dtype} {list(cumulative.shape)}.",
            asked_by="AttentionMask.from_cumulative_lengths",
            hint="0, the end of the first sequence, the end of the second ...",
            field=name,
        )
    tokens = torch.arange(length, device=cumulative.device, dtype=cumulative.dtype)
    segments = torch.searchsorted(cumulative[1:].contiguous(), tokens, right=True)
    return segments.masked_fill(segments >= len(cumulative) - 1, -1)[None]


def runs_of_segments(segments: Tensor) -> VarlenLayout | None:
    """Find the runs of equal segment ids in ``[b, s]``, reading their ends on the host.

    Returns:
        the layout, each run of padding a sequence of its own; `None` when a segment lies in several runs.
    """
    b, s = segments.shape
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begins = starts.flatten().nonzero().flatten()
    ids, rows = segments.flatten()[begins], begins // s
    real = ids >= 0
    runs = torch.stack([rows[real], ids[real]])
    if torch.unique(runs, dim=1).shape[1] != runs.shape[1]:
        return None
    cumulative = torch.cat([begins, begins.new_tensor([b * s])]).int()
    longest = int(cumulative.diff().max())
    return VarlenLayout(cumulative, cumulative, longest, longest, segments >= 0)
