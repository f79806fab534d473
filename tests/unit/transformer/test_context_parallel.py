"""Shares of a sequence: what a rank attends to with its own queries is what one process does with them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import MaskError, ParallelError
from transom.slots.core_attention import CoreAttentionRequest
from transom.transformer._mask_chunks import mask_of_chunk
from transom.transformer._mask_packing import VarlenLayout
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextParallelAttention, ContextShare, attend_in_share
from transom.transformer.dot_product_attention import DotProductAttention

S, N, G, D = 12, 4, 2, 8
CPU = torch.device("cpu")
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


def test_share_has_an_early_and_a_late_chunk() -> None:
    shares = [ContextShare(Ranks("", 3, rank)) for rank in range(3)]
    assert [share.chunks for share in shares] == [(0, 5), (1, 4), (2, 3)]
    assert shares[1].positions(12).tolist() == [2, 3, 8, 9]
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(shares[1].of(tokens), tokens[:, [2, 3, 8, 9]])


def test_share_of_one_rank_is_everything() -> None:
    tokens = torch.arange(8).view(2, 4)
    assert torch.equal(ContextShare(Ranks.of(None)).of(tokens), tokens)


def test_share_refuses_a_sequence_that_does_not_divide() -> None:
    with pytest.raises(ParallelError, match="a sequence of 6 tokens cannot be split into 4 chunks, two for each of 2"):
        ContextShare(Ranks("", 2, 0)).of(torch.zeros(1, 6))
    with pytest.raises(ParallelError) as caught:
        ContextShare(Ranks("", 2, 1)).positions(10)
    assert (caught.value.sequence_length, caught.value.ranks) == (10, 2)  # type: ignore[attr-defined]
    assert caught.value.hint == "a length that is a multiple of 4"


@pytest.mark.parametrize(("queries", "keys"), [(3, 6), (4, 12)])
def test_shares_refuse_keys_that_are_not_the_whole(queries: int, keys: int) -> None:
    core, (query, key, value) = attention(), inputs()
    share = ContextShare(Ranks("", 2, 0))
    with pytest.raises(
        ParallelError, match=f"{queries} queries are no share of {keys} keys over 2 context-par"
    ) as caught:
        attend_in_share(core, query[:, :queries], key[:, :keys], value[:, :keys], None, share)
    assert (caught.value.queries, caught.value.keys) == (queries, keys)  # type: ignore[attr-defined]


def test_shares_refuse_a_mask_of_a_share() -> None:
    core, (query, key, value) = attention(), inputs()
    mask = AttentionMask(causal=True, key_padding=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(MaskError, match="key_padding is for 6 keys, but there are 12"):
        attend_in_share(core, query[:, :6], key, value, mask, ContextShare(Ranks("", 2, 0)))


def test_chunks_of_a_causal_mask_are_plainly_causal_over_the_keys_up_to_them() -> None:
    seen = []

    def core(query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        assert mask is not None
        seen.append((key.shape[1], mask.is_plain_causal(), mask))
        return query

    query, key, value = inputs()
    whole = AttentionMask(causal=True)
    for _ in range(2):
        attend_in_share(core, query[:, :6], key, value, whole, ContextShare(Ranks("", 2, 1)))  # type: ignore[arg-type]
    assert [(keys, plain) for keys, plain, _ in seen] == [(6, True), (9, True)] * 2
    assert [mask is other for (*_, mask), (*_, other) in zip(seen[:2], seen[2:], strict=True)] == [True, True]


def test_chunks_of_a_mask_with_a_learned_bias_are_made_anew() -> None:
    bias = torch.zeros(1, N, S, S, dtype=torch.float64, requires_grad=True)
    mask = AttentionMask(causal=True, bias=bias)
    first, again = (mask_of_chunk(mask, 1, 3, S, device=bias.device, windowed=False)[0] for _ in range(2))
    assert first is not again
    assert first.bias is not None
    assert first.bias.shape == (1, N, 3, 6)


def test_chunks_of_segments_are_not_read_on_the_host() -> None:
    mask, _ = mask_of_chunk(AttentionMask(query_segments=SEGMENTS), 0, 3, S, device=CPU, windowed=False)
    assert mask.as_varlen() is None


def test_attention_of_shares_trains_and_loads_as_what_is_inside() -> None:
    core = attention(softmax_type="learnable")
    module = ContextParallelAttention(core, Ranks("", 2, 0))
    assert module.state_dict().keys() == {"softmax_offset"}
    assert module.sharded_state_dict("a.").keys() == {"a.softmax_offset"}
    module.load_state_dict({"softmax_offset": torch.arange(4.0)})
    assert core.softmax_offset is not None
    assert core.softmax_offset.tolist() == [0, 1, 2, 3]
    assert not module.eval().core.training


def visible_by(layout: VarlenLayout, b: int, s: int, t: int, causal: bool) -> Tensor:
    """Draw packed sequences from their cumulative lengths, causality bottom-right, ``[b, s, t]``."""
    seen = torch.zeros(b * s, b * t, dtype=torch.bool)
    ends = zip(layout.cumulative_queries.tolist(), layout.cumulative_keys.tolist(), strict=True)
    for (query, key), (query_end, key_end) in pairwise(ends):
        block = torch.ones(query_end - query, key_end - key, dtype=torch.bool)
        seen[query:query_end, key:key_end] = block.tril(key_end - key - query_end + query) if causal else block
    return torch.stack([seen[row * s : row * s + s, row * t : row * t + t] for row in range(b)])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [2, 3, 6])
def test_chunks_of_packed_sequences_have_cumulative_lengths(width: int, causal: bool) -> None:
    cumulative = torch.tensor([0, 3, 4, 9, 11])  # and one token of padding
    for whole in (
        AttentionMask(causal=causal, query_segments=SEGMENTS),
        AttentionMask.from_cumulative_lengths(cumulative, S, causal=causal),
    ):
        assert whole.as_varlen() is not None
        for chunk in range(S // width):
            mask, t = mask_of_chunk(whole, chunk, width, S, device=CPU, windowed=False)
            layout, dense = mask.as_varlen(), mask.as_bool(width, t, device=CPU)
            assert layout is not None
            assert dense is not None
            real = layout.real[..., None]
            assert torch.equal(visible_by(layout, len(dense), width, t, causal) & real, dense[:, 0])
            assert layout.max_query_length >= int(layout.cumulative_queries.diff().max())
            assert layout.max_key_length >= int(layout.cumulative_keys.diff().max())
