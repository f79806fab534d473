"""pattern_of: what each mask function of transformers says."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils as hf
from transom_hf_attention.patterns import pattern_of

SEGMENTS = torch.tensor([[0, 0, 1, 1]])
POSITIONS = torch.tensor([[0, 1, 0, 1]])

KNOWN = {
    "causal": (hf.causal_mask_function, (True, None, False)),
    "bidirectional": (hf.bidirectional_mask_function, (False, None, False)),
    "window": (hf.sliding_window_causal_mask_function(4), (True, (3, None), False)),
    "window both ways": (hf.sliding_window_bidirectional_mask_function(4), (False, (4, 4), False)),
    "packed": (
        hf.packed_sequence_compatibility_function(hf.causal_mask_function, POSITIONS, SEGMENTS),
        (True, None, True),
    ),
    "packed window": (
        hf.packed_sequence_compatibility_function(hf.sliding_window_causal_mask_function(2), POSITIONS, SEGMENTS),
        (True, (1, None), True),
    ),
}
UNKNOWN = {
    "own": lambda b, h, q, k: k <= q,
    "chunks": hf.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long)),
    "either": hf.or_masks(hf.causal_mask_function, hf.bidirectional_mask_function),
    "blocks": hf.blockwise_overlay(SEGMENTS),
    "causal and own": hf.and_masks(hf.causal_mask_function, lambda b, h, q, k: k > 0),
    "two windows": hf.and_masks(hf.sliding_window_overlay(2), hf.sliding_window_overlay(3)),
    "two packings": hf.and_masks(
        hf.packed_sequence_mask_function(SEGMENTS), hf.packed_sequence_mask_function(SEGMENTS)
    ),
    "positions of no packing": hf.remap_positions_for_packed_sequence(hf.causal_mask_function, POSITIONS),
    "own in positions": hf.packed_sequence_compatibility_function(lambda b, h, q, k: k <= q, POSITIONS, SEGMENTS),
    "built in": max,
}


@pytest.mark.parametrize("name", KNOWN)
def test_pattern_of_reads_what_is_known(name: str) -> None:
    function, (causal, window, is_packed) = KNOWN[name]
    pattern = pattern_of(function)
    assert pattern is not None
    assert (pattern.causal, pattern.window) == (causal, window)
    assert (pattern.segments is SEGMENTS) == is_packed


@pytest.mark.parametrize("name", UNKNOWN)
def test_pattern_of_says_nothing_of_what_is_not(name: str) -> None:
    assert pattern_of(UNKNOWN[name]) is None
