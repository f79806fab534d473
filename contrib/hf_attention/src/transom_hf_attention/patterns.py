"""What a mask function of transformers says, where it is one that is known.

Transformers composes a mask from small functions of indices. Those that say causality, windows and packing are told by
their code, and their numbers read from their closures; of any other nothing is said, and it is drawn instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils as hf

__all__ = ["Pattern", "pattern_of"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A mask function in words.

    Args:
        causal: no later key.
        window: token distances to the left and to the right; `None` = unbounded.
        segments: integers ``[b, s]``, told apart by their packing; `None` = not packed.
        counts_in_segments: distances are counted in positions of packed sequences.
    """

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    segments: Tensor | None = None
    counts_in_segments: bool = False


def pattern_of(function: Callable[..., Any]) -> Pattern | None:
    """Read a mask function.

    Args:
        function: of the indices of row, head, query and key.

    Returns:
        what it says; `None` when that is not known.

    Example:
        >>> pattern_of(hf.sliding_window_causal_mask_function(4))
        Pattern(causal=True, window=(3, None), segments=None, counts_in_segments=False)
        >>> pattern_of(lambda b, h, q, k: k <= q) is None
        True
    """
    found = _read(function)
    if found is None or (found.counts_in_segments and found.segments is None):
        return None
    return found


def _read(function: Callable[..., Any]) -> Pattern | None:
    plain = {hf.causal_mask_function: Pattern(causal=True), hf.bidirectional_mask_function: Pattern()}
    if function in plain:
        return plain[function]
    read = _READERS.get(getattr(function, "__code__", None))
    return None if read is None else read(inspect.getclosurevars(function).nonlocals)


def _all_of(closure: Mapping[str, Any]) -> Pattern | None:
    whole = Pattern()
    for function in closure["mask_functions"]:
        part = _read(function)
        if part is None or (whole.window and part.window) or (whole.segments is not None and part.segments is not None):
            return None
        whole = Pattern(
            causal=whole.causal or part.causal,
            window=whole.window or part.window,
            segments=part.segments if whole.segments is None else whole.segments,
            counts_in_segments=whole.counts_in_segments or part.counts_in_segments,
        )
    return whole


def _window(closure: Mapping[str, Any]) -> Pattern:
    return Pattern(window=(closure["sliding_window"] - 1, None))  # the token itself is one of them


def _window_both_ways(closure: Mapping[str, Any]) -> Pattern:
    return Pattern(window=(closure["sliding_window"], closure["sliding_window"]))


def _packed(closure: Mapping[str, Any]) -> Pattern:
    return Pattern(segments=closure["packed_sequence_mask"])


def _in_segments(closure: Mapping[str, Any]) -> Pattern | None:
    # Positions within a sequence follow each other, so that distances are those that segments alone give.
    inner = _read(closure["mask_function"])
    return None if inner is None else Pattern(causal=inner.causal, window=inner.window, counts_in_segments=True)


def _code(function: Callable[..., Any]) -> Any:
    return function.__code__


_ANY = torch.zeros(1, 1, dtype=torch.long)
_READERS: dict[Any, Callable[[Mapping[str, Any]], Pattern | None]] = {
    _code(hf.and_masks(hf.causal_mask_function)): _all_of,
    _code(hf.sliding_window_overlay(1)): _window,
    _code(hf.sliding_window_bidirectional_overlay(1)): _window_both_ways,
    _code(hf.packed_sequence_mask_function(_ANY)): _packed,
    _code(hf.remap_positions_for_packed_sequence(hf.causal_mask_function, _ANY)): _in_segments,
}
