"""The mask object against an element-by-element definition."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transom.errors import MaskError
from transom.transformer.attention_mask import AttentionMask

CPU = torch.device("cpu")
MANY = settings(max_examples=150, deadline=None)


def value_of(field: Tensor | None, b: int, i: int) -> int | None:
    if field is None:
        return None
    row = field if field.dim() == 1 else field[b if field.shape[0] > 1 else 0]
    return int(row[i])


def place(mask: AttentionMask, s: int, t: int, b: int, i: int, j: int) -> tuple[int, int]:
    """Positions of query i and key j of row b, by the definition."""
    if mask.query_positions is not None or mask.key_positions is not None:
        q, k = value_of(mask.query_positions, b, i), value_of(mask.key_positions, b, j)
        return (t - s + i if q is None else q), (j if k is None else k)
    if mask.query_segments is None:
        return t - s + i, j
    key_segments = mask.query_segments if mask.key_segments is None else mask.key_segments
    queries, keys = mask.query_segments[b].tolist(), key_segments[b].tolist()
    later_queries = queries[i + 1 :].count(queries[i])
    return keys.count(queries[i]) - 1 - later_queries, keys[:j].count(keys[j])


def may_attend(
    mask: AttentionMask, s: int, t: int, b: int, h: int, i: int, j: int, window: tuple[int | None, int | None] | None
) -> bool:
    """The definition, one element at a time."""
    if mask.query_segments is not None:
        key_segments = mask.query_segments if mask.key_segments is None else mask.key_segments
        if int(mask.query_segments[b, i]) < 0 or int(mask.query_segments[b, i]) != int(key_segments[b, j]):
            return False
    if mask.key_padding is not None and not bool(mask.key_padding[b, j]):
        return False
    if mask.keep is not None:
        keep = mask.keep.expand(max(b + 1, mask.keep.shape[0]), max(h + 1, mask.keep.shape[1]), s, t)
        if not bool(keep[b, h, i, j]):
            return False
    for field, index in ((mask.query_positions, i), (mask.key_positions, j)):
        position = value_of(field, b, index)
        if position is not None and position < 0:
            return False
    query, key = place(mask, s, t, b, i, j)
    in_prefix = mask.prefix_lengths is not None and key < int(mask.prefix_lengths[b])
    if mask.causal and key > query and not in_prefix:
        return False
    for left, right in (w for w in (mask.window, window) if w is not None):
        if left is not None and key < query - left:
            return False
        if right is not None and key > query + right:
            return False
    return True


def naive(mask: AttentionMask, b: int, n: int, s: int, t: int, window: Any = None) -> Tensor:
    rows = [
        [[[may_attend(mask, s, t, k, h, i, j, window) for j in range(t)] for i in range(s)] for h in range(n)]
        for k in range(b)
    ]
    return torch.tensor(rows)


WINDOWS = st.none() | st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4))


@st.composite
def masks(draw: Any) -> tuple[AttentionMask, int, int, int, int, Any]:
    """A mask with any combination of fields, and its sizes b, n, s, t and the layer's window."""
    b, n, s, t = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def maybe(make: Any) -> Any:
        return make() if draw(st.booleans()) else None

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=seed)

    fields: dict[str, Any] = {"causal": draw(st.booleans()), "window": draw(WINDOWS)}
    fields["key_padding"] = maybe(lambda: integers(0, 2, b, t).bool())
    fields["keep"] = maybe(
        lambda: integers(0, 4, draw(st.sampled_from([1, b])), draw(st.sampled_from([1, n])), s, t) > 0
    )
    fields["query_segments"] = maybe(lambda: integers(-1, 3, b, s))
    if fields["query_segments"] is not None and (s != t or draw(st.booleans())):
        fields["key_segments"] = integers(-1, 3, b, t)
    if fields["causal"]:
        fields["prefix_lengths"] = maybe(lambda: integers(0, t + 1, b))
    fields["query_positions"] = maybe(lambda: integers(-1, 8, *draw(st.sampled_from([(s,), (b, s)]))))
    fields["key_positions"] = maybe(lambda: integers(-1, 8, *draw(st.sampled_from([(t,), (b, t)]))))
    return AttentionMask(**fields), b, n, s, t, draw(WINDOWS)


@MANY
@given(masks())
def test_mask_renders_the_definition_when_fields_combine(case: Any) -> None:
    mask, b, n, s, t, window = case
    expected = naive(mask, b, n, s, t, window)
    got = mask.as_bool(s, t, device=CPU, window=window)
    if got is None:
        assert expected.all()
    else:
        assert got.dtype is torch.bool
        assert torch.equal(got.expand(b, n, s, t), expected)
    additive = mask.as_additive(s, t, dtype=torch.float64, device=CPU, window=window)
    zeros = torch.zeros(b, n, s, t, dtype=torch.float64)
    assert torch.equal(
        zeros if additive is None else additive.expand(b, n, s, t), zeros.masked_fill(~expected, -torch.inf)
    )
    rows = mask.seeing_rows(s, t, device=CPU, window=window)
    some = expected.any(-1, keepdim=True)
    assert some.all() if rows is None else torch.equal(rows.expand(b, n, s, 1), some)
    opened = mask.as_opened(s, t, dtype=torch.float64, device=CPU, window=window)
    added, blind = (zeros, None) if opened is None else opened
    assert torch.equal(added.expand(b, n, s, t), zeros.masked_fill(~expected & some, -torch.inf))
    assert some.all() if blind is None else torch.equal(blind.expand(b, n, s, 1), ~some)


@settings(max_examples=25, deadline=None)
@given(masks())
def test_mask_renders_the_same_blocks_when_flex_asks(case: Any) -> None:
    mask, b, n, s, t, window = case
    block = mask.as_block_mask(s, t, device=CPU, window=window)
    expected = naive(mask, b, n, s, t, window)
    if block is None:
        assert expected.all()
        return
    index = [torch.arange(size) for size in (b, n, s, t)]
    got = [
        [
            [
                [bool(block.mask_mod(index[0][k], index[1][h], index[2][i], index[3][j])) for j in range(t)]
                for i in range(s)
            ]
            for h in range(n)
        ]
        for k in range(b)
    ]
    assert torch.equal(torch.tensor(got), expected)
    covered = block.to_dense()[:, :, 0, 0].bool()
    assert torch.equal(covered.expand(b, n), expected.flatten(2).any(-1)) or covered.all()


@pytest.mark.parametrize("s", [1, 3, 5, 7], ids=lambda s: f"s{s}")
def test_causal_aligns_bottom_right_when_lengths_differ(s: int) -> None:
    t = 5
    got = AttentionMask(causal=True).as_bool(s, t, device=CPU)
    assert got is not None
    expected = torch.ones(s, t, dtype=torch.bool).tril(diagonal=t - s)
    assert torch.equal(got[0, 0], expected)
    assert bool(got[0, 0, -1].all())


def test_window_counts_tokens_to_both_sides_when_not_causal() -> None:
    got = AttentionMask(window=(2, 1)).as_bool(5, 5, device=CPU)
    assert got is not None
    assert got[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]


def test_window_of_the_layer_narrows_the_masks_own_when_both_are_given() -> None:
    mask = AttentionMask(causal=True, window=(3, None))
    narrow = mask.as_bool(6, 6, device=CPU, window=(1, 0))
    wide = mask.as_bool(6, 6, device=CPU)
    assert narrow is not None
    assert wide is not None
    assert narrow[0, 0].sum(-1).tolist() == [1, 2, 2, 2, 2, 2]
    assert wide[0, 0].sum(-1).tolist() == [1, 2, 3, 4, 4, 4]


def test_prefix_is_seen_by_all_queries_when_causal() -> None:
    got = AttentionMask(causal=True, prefix_lengths=torch.tensor([2, 0])).as_bool(3, 3, device=CPU)
    assert got is not None
    assert got[:, 0].int().tolist() == [[[1, 1, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


def test_packed_segments_align_each_by_itself_when_keys_are_more_than_queries() -> None:
    mask = AttentionMask(
        causal=True, query_segments=torch.tensor([[0, 0, 1]]), key_segments=torch.tensor([[0, 0, 0, 1, 1]])
    )
    got = mask.as_bool(3, 5, device=CPU)
    assert got is not None
    assert got[0, 0].int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_distances_count_within_a_segment_when_segments_are_interleaved() -> None:
    got = AttentionMask(window=(1, 0), query_segments=torch.tensor([[0, 1, 0, 1, 0]])).as_bool(5, 5, device=CPU)
    assert got is not None
    assert got[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 1, 0, 1],
    ]


def test_bias_adds_alibi_when_both_are_given() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    bias = torch.randn(1, 2, 2, 3, dtype=torch.float64)
    got = AttentionMask(bias=bias, alibi_slopes=slopes).as_bias(2, 3, dtype=torch.float64, device=CPU)
    expected = torch.tensor(
        [
            [[float(bias[0, h, i, j]) - float(slopes[h]) * abs(1 + i - j) for j in range(3)] for i in range(2)]
            for h in range(2)
        ],
        dtype=torch.float64,
    )
    assert got is not None
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-7)


def test_alibi_is_rounded_once_when_dtype_is_bfloat16() -> None:
    got = AttentionMask(alibi_slopes=torch.tensor([0.3])).as_bias(1, 1000, dtype=torch.bfloat16, device=CPU)
    expected = (-torch.tensor(0.3) * torch.arange(999, -1, -1)).bfloat16()
    assert got is not None
    assert torch.equal(got[0, 0, 0], expected)


def test_bias_is_none_when_nothing_is_added() -> None:
    assert AttentionMask(causal=True).as_bias(3, 3, dtype=torch.float32, device=CPU) is None
    assert AttentionMask().as_additive(3, 3, dtype=torch.float32, device=CPU) is None


def test_additive_lets_gradients_reach_the_bias_when_it_is_learned() -> None:
    bias = torch.zeros(1, 1, 3, 3, requires_grad=True)
    mask = AttentionMask(causal=True, bias=bias)
    first = mask.as_additive(3, 3, dtype=torch.float32, device=CPU)
    second = mask.as_additive(3, 3, dtype=torch.float32, device=CPU)
    assert first is not None
    assert first is not second, "what needs a gradient must not be shared by recomputed layers"
    first.masked_fill(first == -torch.inf, 0).sum().backward()
    assert torch.equal(bias.grad, torch.ones(3, 3).tril()[None, None])


def test_opened_names_no_rows_when_a_bias_leaves_each_a_key() -> None:
    bias = torch.tensor([[[[0.5, float("-inf")], [2.0, 1.0]]]])
    opened = AttentionMask(bias=bias).as_opened(2, 2, dtype=torch.float32, device=CPU)
    assert opened is not None
    assert opened.blind is None
    assert torch.equal(opened.added, bias)


def test_opened_counts_what_a_bias_hides_when_it_hides_by_infinity() -> None:
    bias = torch.tensor([[[[1.0, -torch.inf, 2.0], [3.0, 4.0, 5.0]]]], requires_grad=True)
    mask = AttentionMask(bias=bias, key_padding=torch.tensor([[False, True, True], [False, True, False]]))
    opened = mask.as_opened(2, 3, dtype=torch.float32, device=CPU)
    assert opened is not None
    inf = torch.inf
    assert opened.added.tolist() == [[[[-inf, -inf, 2.0], [-inf, 4.0, 5.0]]], [[[0.0] * 3, [-inf, 4.0, -inf]]]]
    assert opened.blind is not None
    assert opened.blind.squeeze().tolist() == [[False, False], [True, False]]
    opened.added.masked_fill(opened.added == -inf, 0).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [[[[0.0, 0.0, 1.0], [0.0, 2.0, 1.0]]]]
    assert mask.as_opened(2, 3, dtype=torch.float32, device=CPU) is not opened


def test_positions_are_those_given_or_aligned_bottom_right() -> None:
    query, key = AttentionMask().positions(2, 5, device=CPU)
    assert (query.tolist(), key.tolist()) == ([[3, 4]], [[0, 1, 2, 3, 4]])
    query, key = AttentionMask(query_positions=torch.tensor([7, 9])).positions(2, 3, device=CPU)
    assert (query.tolist(), key.tolist()) == ([[7, 9]], [[0, 1, 2]])


def test_renderings_are_made_once_when_layers_share_the_mask() -> None:
    mask = AttentionMask(causal=True, key_padding=torch.ones(1, 4, dtype=torch.bool))
    opened = mask.as_opened(4, 4, dtype=torch.float32, device=CPU)
    assert opened is mask.as_opened(4, 4, dtype=torch.float32, device=CPU)
    assert opened is not mask.as_opened(4, 4, dtype=torch.float64, device=CPU)
    assert mask.as_bool(4, 4, device=CPU) is mask.as_bool(4, 4, device=CPU)
    assert mask.as_bool(4, 4, device=CPU, window=(1, 0)) is mask.as_bool(4, 4, device=CPU, window=(1, 0))
    assert mask.as_bool(4, 4, device=CPU) is not mask.as_bool(4, 4, device=CPU, window=(1, 0))
    assert mask.as_bool(2, 4, device=CPU).shape[2] == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"causal": True}, {"causal"}),
        ({"window": (1, 1)}, {"window"}),
        ({"query_segments": torch.zeros(1, 2, dtype=torch.long)}, {"packed"}),
        ({"causal": True, "prefix_lengths": torch.tensor([1])}, {"causal", "prefix"}),
        ({"key_padding": torch.ones(1, 2, dtype=torch.bool)}, {"padding"}),
        ({"query_positions": torch.arange(2)}, {"positions"}),
        ({"key_positions": torch.arange(2)}, {"positions"}),
        ({"keep": torch.ones(1, 1, 2, 2, dtype=torch.bool)}, {"keep"}),
        ({"bias": torch.zeros(1, 1, 2, 2)}, {"bias"}),
        ({"bias": torch.zeros(1, 1, 2, 2, requires_grad=True)}, {"bias", "bias_grad"}),
        ({"alibi_slopes": torch.ones(2)}, {"alibi"}),
    ],
    ids=lambda x: "+".join(sorted(x)) or "nothing",
)
def test_features_name_what_is_used_when_fields_are_given(fields: dict[str, Any], expected: set[str]) -> None:
    mask = AttentionMask(**fields)
    assert mask.features == expected
    assert mask.is_plain_causal() == (expected == {"causal"})


@pytest.mark.parametrize(
    ("own", "layers", "plain"),
    [
        (None, None, True),
        ((None, 0), None, True),
        (None, (None, 3), True),
        ((3, None), None, False),
        (None, (0, 0), False),
    ],
)
def test_is_plain_causal_ignores_a_window_when_it_hides_nothing_more(own: Any, layers: Any, plain: bool) -> None:
    assert AttentionMask(causal=True, window=own).is_plain_causal(layers) is plain
    bounded = AttentionMask(causal=True, window=own).as_bool(5, 5, device=CPU, window=layers)
    assert torch.equal(bounded, AttentionMask(causal=True).as_bool(5, 5, device=CPU)) is plain


def test_cumulative_lengths_number_the_sequences_when_one_is_empty_and_padding_follows() -> None:
    mask = AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 7, max_length=3)
    assert mask.query_segments.tolist() == [[0, 0, 2, 2, 2, -1, -1]]
    layout = mask.as_varlen()
    assert layout.cumulative_queries.tolist() == layout.cumulative_keys.tolist() == [0, 2, 2, 5]
    assert layout.cumulative_queries.dtype is torch.int32
    assert (layout.max_query_length, layout.max_key_length) == (3, 3)
    assert layout.real.tolist() == [[True] * 5 + [False] * 2]


def test_cumulative_lengths_serve_other_keys_when_given() -> None:
    mask = AttentionMask.from_cumulative_lengths(
        torch.tensor([0, 1, 3]), 3, key_cumulative=torch.tensor([0, 2, 6]), key_length=6, causal=True
    )
    layout = mask.as_varlen()
    assert layout.cumulative_keys.tolist() == [0, 2, 6]
    assert (layout.max_query_length, layout.max_key_length) == (3, 6)
    assert mask.as_bool(3, 6, device=CPU)[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]


def test_varlen_finds_the_runs_when_segments_lie_together() -> None:
    mask = AttentionMask(causal=True, query_segments=torch.tensor([[7, 7, 2, -1], [7, 7, 7, 7]]))
    layout = mask.as_varlen()
    assert layout.cumulative_queries.tolist() == [0, 2, 3, 4, 8]
    assert layout.max_query_length == 4
    assert layout.real.tolist() == [[True, True, True, False], [True] * 4]
    assert mask.as_varlen() is layout


@pytest.mark.parametrize(
    "fields",
    [
        {"causal": True},
        {"query_segments": torch.tensor([[0, 1, 0]])},
        {"query_segments": torch.tensor([[0, 0, 1]]), "key_segments": torch.tensor([[0, 1, 1]])},
        {"query_segments": torch.tensor([[0, 0, 1]]), "bias": torch.zeros(1, 1, 3, 3)},
        {"query_segments": torch.tensor([[0, 0, 1]]), "key_padding": torch.ones(1, 3, dtype=torch.bool)},
    ],
    ids=["no segments", "scattered", "separate keys", "bias", "padding"],
)
def test_varlen_is_none_when_it_cannot_say_the_mask(fields: dict[str, Any]) -> None:
    assert AttentionMask(**fields).as_varlen() is None


def test_unrendered_keeps_fields_and_layout_when_copied() -> None:
    mask = AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 3]), 3, causal=True)
    rendered = mask.as_bool(3, 3, device=CPU)
    copy = mask.unrendered()
    assert copy.as_varlen() is mask.as_varlen()
    assert copy.as_bool(3, 3, device=CPU) is not rendered
    assert torch.equal(copy.as_bool(3, 3, device=CPU), rendered)


def test_for_cache_follows_positions_when_causal() -> None:
    positions = torch.tensor([[2, 3], [0, 1]])
    mask = AttentionMask(causal=True)
    derived = mask.for_cache(positions, torch.tensor([4, 2]), 6)
    assert derived.as_bool(2, 6, device=CPU)[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]],
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    ]
    assert mask.for_cache(positions, torch.tensor([4, 2]), 6) is derived
    assert derived.for_cache(positions, torch.tensor([4, 2]), 6) is derived
    assert mask.for_cache(positions.clone(), torch.tensor([4, 2]), 6) is not derived


def test_for_cache_hides_unused_slots_when_not_causal() -> None:
    padding = torch.tensor([[False, True, True, True, True, True]])
    for mask, first in ((AttentionMask(), 1), (AttentionMask(key_padding=padding), 0)):
        derived = mask.for_cache(torch.tensor([2, 3]), torch.tensor([4]), 5)
        assert derived.as_bool(2, 5, device=CPU)[0, 0].int().tolist() == [[first, 1, 1, 1, 0]] * 2


def test_for_cache_cuts_fields_to_the_slots_read_when_they_are_for_all() -> None:
    keep, bias = torch.rand(1, 1, 2, 9) > 0.5, torch.randn(1, 1, 2, 9)
    derived = AttentionMask(causal=True, keep=keep, bias=bias).for_cache(
        torch.tensor([2, 3]), torch.tensor([4]), 4, aligned=True
    )
    assert derived.query_positions is None
    assert torch.equal(derived.keep, keep[..., :4])
    assert torch.equal(derived.bias, bias[..., :4])
    plain = AttentionMask(causal=True)
    assert plain.for_cache(torch.tensor([2, 3]), torch.tensor([4]), 4, aligned=True).is_plain_causal()


ONES = torch.ones(1, 1, 2, 2)
REFUSED = {
    "float keep": ({"keep": ONES}, "keep must be a tensor of bool dtype, not torch.float32."),
    "integer keep": ({"keep": ONES.int()}, "keep must be a tensor of bool dtype, not torch.int32."),
    "keep of rank 2": ({"keep": ONES[0, 0].bool()}, r"keep must have shape \[b or 1, n or 1, s, t\], not \[2, 2\]."),
    "bool bias": ({"bias": ONES.bool()}, "bias must be a tensor of floating dtype, not torch.bool."),
    "integer bias": ({"bias": ONES.long()}, "bias must be a tensor of floating dtype, not torch.int64."),
    "float padding": ({"key_padding": ONES[0, 0]}, "key_padding must be a tensor of bool dtype, not torch.float32."),
    "a list": ({"key_padding": [[True]]}, "key_padding must be a tensor of bool dtype, not list."),
    "padding of rank 1": ({"key_padding": ONES[0, 0, 0].bool()}, r"key_padding must have shape \[b, t\], not \[2\]."),
    "float segments": (
        {"query_segments": ONES[0, 0]},
        "query_segments must be a tensor of integer dtype, not torch.float32.",
    ),
    "bool segments": (
        {"query_segments": ONES[0, 0].bool()},
        "query_segments must be a tensor of integer dtype, not torch.bool.",
    ),
    "float positions": ({"query_positions": ONES[0, 0, 0]}, "query_positions must be a tensor of integer dtype"),
    "positions of rank 4": (
        {"key_positions": ONES.long()},
        r"key_positions must have shape \[t\] or \[b, t\], not \[1, 1, 2, 2\].",
    ),
    "integer slopes": (
        {"alibi_slopes": torch.ones(2).long()},
        "alibi_slopes must be a tensor of floating dtype, not torch.int64.",
    ),
    "key segments alone": ({"key_segments": ONES[0, 0].long()}, "key_segments are given without query_segments."),
    "prefix without causal": ({"prefix_lengths": torch.tensor([1])}, "prefix_lengths are given without causal"),
    "rows": (
        {"key_padding": torch.ones(3, 2).bool(), "query_segments": torch.ones(2, 2).long()},
        "different numbers of rows: query_segments 2, key_padding 3.",
    ),
    "heads": (
        {"bias": torch.ones(1, 3, 2, 2), "alibi_slopes": torch.ones(2)},
        "different numbers of heads: bias 3, alibi_slopes 2.",
    ),
    "negative window": ({"window": (-1, 0)}, r"a window is \(left, right\), .*, not \(-1, 0\)."),
    "window of one": ({"window": (1,)}, r"not \(1,\)."),
    "window of floats": ({"window": (1.0, 0)}, r"not \(1.0, 0\)."),
    "window of bools": ({"window": (True, 0)}, r"not \(True, 0\)."),
}


@pytest.mark.parametrize(("fields", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_mask_refuses_fields_when_they_cannot_be_meant(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MaskError, match=text):
        AttentionMask(**fields)


def test_mask_says_where_a_float_keep_belongs_when_refused() -> None:
    with pytest.raises(MaskError) as caught:
        AttentionMask(keep=ONES)
    assert caught.value.field == "keep"
    assert caught.value.asked_by == "AttentionMask.keep"
    assert "bias=" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "s", "t", "text"),
    [
        ({"keep": ONES.bool()}, 3, 2, "keep is for 2 queries, but there are 3."),
        ({"keep": ONES.bool()}, 2, 3, "keep is for 2 keys, but there are 3."),
        ({"bias": ONES, "causal": True}, 2, 5, "bias is for 2 keys, but there are 5."),
        ({"key_padding": ONES[0, 0].bool()}, 2, 3, "key_padding is for 2 keys, but there are 3."),
        (
            {"query_positions": torch.arange(4), "causal": True},
            3,
            3,
            "query_positions is for 4 queries, but there are 3.",
        ),
        ({"key_positions": torch.arange(4)}, 3, 3, "key_positions is for 4 keys, but there are 3."),
        (
            {"query_segments": torch.zeros(1, 3).long()},
            3,
            5,
            "query_segments without key_segments are for equal numbers",
        ),
    ],
)
def test_mask_refuses_to_render_when_lengths_differ(fields: dict[str, Any], s: int, t: int, text: str) -> None:
    with pytest.raises(MaskError, match=text):
        AttentionMask(**fields).as_bool(s, t, device=CPU)


def test_mask_refuses_a_layers_window_when_malformed() -> None:
    with pytest.raises(MaskError, match=r"not \(3, -2\)"):
        AttentionMask(causal=True).as_bool(4, 4, device=CPU, window=(3, -2))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"cumulative": torch.tensor([0.0, 2.0]), "length": 2},
            r"cumulative must be integers \[m \+ 1\], not torch.float32 \[2\].",
        ),
        ({"cumulative": torch.tensor([0]), "length": 2}, r"not torch.int64 \[1\]."),
        ({"cumulative": torch.tensor([[0, 2]]), "length": 2}, r"not torch.int64 \[1, 2\]."),
        (
            {"cumulative": torch.tensor([0, 2]), "length": 2, "key_length": 3},
            "key_cumulative and key_length come together.",
        ),
        (
            {
                "cumulative": torch.tensor([0, 2]),
                "length": 2,
                "key_cumulative": torch.tensor([0, 1, 3]),
                "key_length": 3,
            },
            "cumulative tells 1 sequences and key_cumulative 2.",
        ),
    ],
)
def test_cumulative_lengths_are_refused_when_malformed(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(MaskError, match=text):
        AttentionMask.from_cumulative_lengths(**arguments)


def test_mask_survives_pickle_when_rendered() -> None:
    mask = AttentionMask(causal=True, key_padding=torch.tensor([[True, False]]))
    rendered = mask.as_bool(2, 2, device=CPU)
    assert torch.equal(pickle.loads(pickle.dumps(mask)).as_bool(2, 2, device=CPU), rendered)


@pytest.mark.parametrize("outside", [False, True], ids=["made inside", "made outside"])
def test_mask_traces_in_one_graph_when_lengths_change(outside: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def step(x: Tensor, padding: Tensor, mask: AttentionMask | None) -> Tensor:
        if mask is None:
            mask = AttentionMask(causal=True, key_padding=padding)
        for window in (None, (1, 0), None):
            visible = mask.as_bool(x.shape[0], x.shape[0], device=x.device, window=window)
            x = x + visible.sum(-1)[0, 0]
        return x

    for s in (4, 5, 6):
        x, padding = torch.zeros(s), torch.rand(1, s) > 0.3
        mask = AttentionMask(causal=True, key_padding=padding)
        got = step(x, padding, replace(mask) if outside else None)
        expected = 2 * naive(mask, 1, 1, s, s)[0, 0].sum(-1) + naive(mask, 1, 1, s, s, (1, 0))[0, 0].sum(-1)
        assert torch.equal(got, expected.float())
    assert counter.frame_count == 1


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias and alibi", "alibi"])
def test_score_mod_adds_what_as_bias_draws(has_bias: bool) -> None:
    slopes, bias = torch.tensor([0.5, 0.25]), torch.randn(2, 1, 3, 5) if has_bias else None
    mask = AttentionMask(alibi_slopes=slopes, bias=bias, query_positions=torch.tensor([[2, 3, 4], [0, 1, 4]]))
    add = mask.as_score_mod(3, 5, device=CPU)
    drawn = mask.as_bias(3, 5, dtype=torch.float32, device=CPU)
    assert add is not None
    assert drawn is not None
    for at in itertools.product(range(2), range(2), range(3), range(5)):
        added = add(torch.tensor(1.5), *map(torch.tensor, at))
        torch.testing.assert_close(added, 1.5 + drawn.expand(2, 2, 3, 5)[at])


def test_score_mod_is_none_when_nothing_is_added() -> None:
    assert AttentionMask(causal=True).as_score_mod(3, 5, device=CPU) is None
