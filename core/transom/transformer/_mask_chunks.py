"""From the mask over a whole sequence to that of some of its queries, of which a process has no others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transom.transformer._mask_checks import check_lengths

if TYPE_CHECKING:
    from transom.transformer.attention_mask import AttentionMask

__all__ = ["mask_of_chunk"]

_OF_QUERIES = {"query_segments": -1, "query_positions": -1, "keep": -2, "bias": -2}
_OF_KEYS = ("key_segments", "key_padding", "key_positions", "keep", "bias")
_OF_DISTANCE = frozenset({"causal", "window", "prefix", "alibi", "positions"})


def mask_of_chunk(
    mask: AttentionMask, chunk: int, width: int, t: int, *, device: torch.device, windowed: bool
) -> tuple[AttentionMask, int]:
    """Derive the mask of a part of the queries, over the keys that these can see.

    Causality by order hides all keys after the last query. There the keys end with the queries, and bottom-right
    alignment says where these are. A prefix or the caller's own positions may show any key: positions are given then,
    if anything depends on distances.

    Args:
        mask: over a whole sequence: of t queries and t keys.
        chunk: the queries ``chunk * width ... (chunk + 1) * width - 1``.
        width: how many there are.
        t: tokens of the sequence.
        device: of the keys.
        windowed: the layer has a window of its own.

    Returns:
        the mask, and how many keys it is over, the first ones; the same object when called again for the same queries.
        It has cumulative lengths where those of the whole are known already: from the first, if it was made of them.

    Raises:
        MaskError: a field is for another number of queries or keys than t.
    """
    memo_key = ("chunk", chunk, windowed)
    made = mask._memo.get(memo_key)
    if made is not None and made[0] == width and made[1] == t:
        found: tuple[AttentionMask, int] = made[2]
        return found
    check_lengths(mask, t, t)
    derived = _derived(mask, chunk * width, (chunk + 1) * width, t, windowed, device)
    if mask.bias is None or not mask.bias.requires_grad:  # as in what masks render: a recomputed layer derives anew
        mask._memo[memo_key] = (width, t, derived)
    return derived


def _derived(
    mask: AttentionMask, start: int, stop: int, t: int, windowed: bool, device: torch.device
) -> tuple[AttentionMask, int]:
    by_order = mask.causal and mask.features.isdisjoint({"prefix", "positions"})
    end = stop if by_order else t
    whole: dict[str, Any] = {name: getattr(mask, name) for name in (*_OF_QUERIES, *_OF_KEYS)}
    if mask.query_segments is not None and mask.key_segments is None:
        whole["key_segments"] = mask.query_segments
    if not by_order and (windowed or not mask.features.isdisjoint(_OF_DISTANCE)):
        whole["query_positions"], whole["key_positions"] = mask.positions(t, t, device=device)
    cut = {name: field for name, field in whole.items() if field is not None}
    for name, dim in _OF_QUERIES.items():
        _narrow(cut, name, dim, start, stop)
    for name in _OF_KEYS:
        _narrow(cut, name, -1, 0, end)
    derived, layout = replace(mask, **cut), mask._memo.get("varlen")
    if layout is not None:
        derived._memo["varlen"] = layout.of_chunk(start, stop, t, end)
    return derived, end


def _narrow(fields: dict[str, Tensor], name: str, dim: int, start: int, stop: int) -> None:
    if name in fields:
        part = fields[name].narrow(dim, start, stop - start)
        fields[name] = part.contiguous() if part.dim() < 4 else part  # segments are searched; a bias is only read
