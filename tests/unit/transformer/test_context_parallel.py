"""Shares of a sequence: what a rank attends to with its own queries is what one process does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.slots.core_attention import CoreAttentionRequest
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare, attend_in_share
from transom.transformer.dot_product_attention import DotProductAttention

S, N, G, D = 12, 4, 2, 8
SEGMENTS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1]])
PADDING = torch.tensor([[False] * 5 + [True] * 7, [True] * 10 + [False] * 2])


def keep() -> Tensor:
    return torch.rand(2, N, S, S, generator=torch.Generator().manual_seed(1)) < 0.6


MASKS: dict[str, dict[str, Any]] = {
    "everyone": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": (3, 0)},
    "both_sides": {"window": (2, 3)},
    "packed": {"causal": True, "query_segments": SEGMENTS},
    "packed_window": {"causal": True, "query_segments": SEGMENTS, "window": (2, 0)},
    "packed_both_sides": {"query_segments": SEGMENTS, "window": (2, 1)},
    "padded": {"causal": True, "key_padding": PADDING},
    "padded_everyone": {"key_padding": PADDING},
    "prefix": {"causal": True, "prefix_lengths": torch.tensor([7, 0])},
    "positions": {"causal": True, "query_positions": torch.arange(S).flip(0), "key_positions": torch.arange(S).flip(0)},
    "query_positions": {"causal": True, "query_positions": torch.arange(S).flip(0)},
    "keep": {"keep": keep()},
    "causal_keep": {"causal": True, "keep": keep()[:1]},
    "bias": {"causal": True, "bias": torch.randn(1, N, S, S, generator=torch.Generator().manual_seed(2)).double()},
    "alibi": {"causal": True, "alibi_slopes": torch.tensor([1.0, 0.5, 0.25, 0.125])},
    "alibi_everyone": {"alibi_slopes": torch.tensor([1.0, 0.5, 0.25, 0.125])},
}


def attention(window: tuple[int, int] | None = None, **config: Any) -> DotProductAttention:
    request = CoreAttentionRequest(
        context=BuildContext(dtype="float64"),
        num_attention_heads=N,
        num_query_groups=G,
        head_size=D,
        value_head_size=D,
        window=window,
    )
    made = TransformerConfig(num_layers=1, hidden_size=N * D, num_attention_heads=N, params_dtype="float64", **config)
    return DotProductAttention(made, request=request, layer_number=1)


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, S, N, D), (2, S, G, D), (2, S, G, D))
    return [torch.randn(*size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes]


@pytest.mark.parametrize("window", [None, (4, 0)], ids=["", "layer_window"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_shares_attend_as_the_whole_does(kind: str, ranks: int, window: tuple[int, int] | None) -> None:
    core, (query, key, value) = attention(window), inputs()
    mask = AttentionMask(**MASKS[kind])
    whole = core(query, key, value, mask=mask)
    direction = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, (query, key, value), direction)
    summed = [torch.zeros_like(x) for x in (query, key, value)]
    for rank in range(ranks):
        share = ContextShare(Ranks("", ranks, rank))
        found = attend_in_share(core, share.of(query), key, value, mask, share, windowed=window is not None)
        torch.testing.assert_close(found, share.of(whole), rtol=1e-12, atol=1e-12)
        for total, part in zip(
            summed, torch.autograd.grad(found, (query, key, value), share.of(direction)), strict=True
        ):
            total += part
    for found, wanted in zip(summed, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
