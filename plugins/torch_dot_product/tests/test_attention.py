"""TorchDotProductAttention against its formula, element by element in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.slots.core_attention import CoreAttentionRequest
from transom_torch_dot_product.attention import TorchDotProductAttention

B, N, S, T, D = 2, 4, 5, 7, 8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def integers(*shape: int, high: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape)


def segments(s: int, t: int) -> dict[str, Tensor]:
    """Two sequences and padding; the second row has a segment of queries without any key."""
    query = torch.tensor([[0] * (s // 2) + [1] * (s - s // 2), [-1] + [0] * (s - 2) + [3]])
    key = torch.tensor([[0] * (t // 2) + [1] * (t - t // 2), [-1, -1] + [0] * (t - 3) + [5]])
    return {"query_segments": query, "key_segments": key}


# What a mask may hold, by the card's feature: (s, t) -> fields.
FIELDS: dict[str, Callable[[int, int], dict[str, object]]] = {
    "causal": lambda s, t: {"causal": True},
    "window": lambda s, t: {"window": (2, 1)},
    "packed": segments,
    "prefix": lambda s, t: {"causal": True, "prefix_lengths": torch.tensor([3, 0])},
    "padding": lambda s, t: {"key_padding": torch.arange(t) >= torch.tensor([[2], [t]])},
    "positions": lambda s, t: {
        "query_positions": torch.stack([torch.arange(s) - 1, torch.arange(s) + 2]),
        "key_positions": torch.stack([torch.arange(t).roll(2), torch.arange(t) - 2]),
    },
    "keep": lambda s, t: {"keep": torch.rand(B, 1, s, t) < 0.6},
    "bias": lambda s, t: {"bias": torch.randn(1, N, s, t)},
    "bias_grad": lambda s, t: {"bias": torch.randn(1, N, s, t, requires_grad=True)},
    "alibi": lambda s, t: {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
}
PAIRS = [p for p in itertools.combinations(FIELDS, 2) if set(p) != {"bias", "bias_grad"}]


def positions_of(mask: AttentionMask, s: int, t: int) -> tuple[list[list[int]], list[list[int]]]:
    """Positions of queries and keys, spelled out: those given; else the last query is at its segment's last key."""
    if mask.query_positions is not None:
        query, key = mask.query_positions, mask.key_positions
        assert key is not None
        return query.expand(B, s).tolist(), key.expand(B, t).tolist()
    if mask.query_segments is None:
        return [list(range(t - s, t))] * B, [list(range(t))] * B
    rows: tuple[list[list[int]], list[list[int]]] = ([], [])
    assert mask.key_segments is not None
    for query_row, key_row in zip(mask.query_segments.tolist(), mask.key_segments.tolist(), strict=True):
        rank_from_end = [query_row[i + 1 :].count(x) for i, x in enumerate(query_row)]
        rows[0].append([key_row.count(x) - 1 - r for x, r in zip(query_row, rank_from_end, strict=True)])
        rows[1].append([key_row[:j].count(x) for j, x in enumerate(key_row)])
    return rows


def may_attend(mask: AttentionMask, window: tuple[int, int] | None, s: int, t: int) -> Tensor:
    """``[B, N, s, t]``, decided one by one in plain Python from what the fields mean."""
    query_at, key_at = positions_of(mask, s, t)
    allowed = torch.zeros(B, N, s, t, dtype=torch.bool)
    for b, h, i, j in itertools.product(range(B), range(N), range(s), range(t)):
        p, q = query_at[b][i], key_at[b][j]
        says = [True]
        if mask.causal:
            says.append(q <= p or (mask.prefix_lengths is not None and q < int(mask.prefix_lengths[b])))
        for left, right in filter(None, (mask.window, window)):
            says.append((left is None or p - q <= left) and (right is None or q - p <= right))
        if mask.query_segments is not None and mask.key_segments is not None:
            says.append(int(mask.query_segments[b, i]) == int(mask.key_segments[b, j]) >= 0)
        if mask.query_positions is not None:
            says.append(p >= 0 and q >= 0)
        if mask.key_padding is not None:
            says.append(bool(mask.key_padding[b, j]))
        if mask.keep is not None:
            says.append(bool(mask.keep.expand(B, N, s, t)[b, h, i, j]))
        if mask.bias is not None:
            says.append(mask.bias.expand(B, N, s, t)[b, h, i, j].item() > -math.inf)
        allowed[b, h, i, j] = all(says)
    return allowed


def formula(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, *, window: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attention by its definition: one head at a time, a sum over the keys that may be attended to."""
    mask = mask or AttentionMask()
    (_, s, n, d), (t, g) = query.shape, key.shape[1:3]
    allowed = may_attend(mask, window, s, t)
    query_at, key_at = positions_of(mask, s, t)
    heads = []
    for h in range(n):
        group = h // (n // g)
        scores = query[:, :, h] @ key[:, :, group].mT * (scale or 1 / math.sqrt(d))  # [b, s, t]
        if mask.bias is not None:
            scores = scores + mask.bias.expand(-1, n, s, t)[:, h].to(query.dtype)
        if mask.alibi_slopes is not None:
            distance = torch.tensor(query_at)[:, :, None] - torch.tensor(key_at)[:, None, :]
            scores = scores - mask.alibi_slopes[h].double() * distance.abs()
        scores = torch.where(allowed[:, h], scores, 0.0)
        weights = torch.where(allowed[:, h], (scores - scores.detach().amax(-1, keepdim=True)).exp(), 0.0)
        heads.append((weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)) @ value[:, :, group])
    return torch.stack(heads, dim=2)


def attention(*, g: int = N, d: int = D, dv: int = D, **fields: object) -> TorchDotProductAttention:
    request, config = ask(g=g, d=d, dv=dv, **fields)
    return TorchDotProductAttention(config, request=request, layer_number=1)


def ask(*, g: int, d: int, dv: int, **fields: object) -> tuple[CoreAttentionRequest, TransformerConfig]:
    request = CoreAttentionRequest(
        context=BuildContext(), num_attention_heads=N, num_query_groups=g, head_size=d, value_head_size=dv, **fields
    )  # fmt: skip
    return request, TransformerConfig(num_layers=1, hidden_size=N * d, num_attention_heads=N, num_query_groups=g)


def inputs(s: int, t: int, *, g: int = N, d: int = D, dv: int = D, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = ((B, s, N, d), (B, t, g, d), (B, t, g, dv))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def assert_same_as_formula(
    module: torch.nn.Module, tensors: list[Tensor], mask: AttentionMask | None, *, tolerance: float, **kwargs: object
) -> None:
    """Outputs and the gradients of query, key, value and a learned bias."""
    learned = [mask.bias] if mask is not None and mask.bias is not None and mask.bias.requires_grad else []
    out = module(*tensors, mask=mask)
    exact = formula(*(x.double() for x in tensors), mask, **kwargs)
    assert out.dtype == tensors[0].dtype
    torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(exact)
    wanted = torch.autograd.grad((exact * direction).sum(), [*tensors, *learned])
    found = torch.autograd.grad((out * direction.to(out.dtype)).sum(), [*tensors, *learned])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=5 * tolerance, rtol=5 * tolerance)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in FIELDS), *PAIRS], ids="+".join)
@pytest.mark.parametrize(("s", "t"), [(S, T), (T, S), (S, S)], ids=["s<t", "s>t", "s=t"])
def test_attention_equals_the_formula(kinds: tuple[str, ...], s: int, t: int) -> None:
    mask = AttentionMask(**{name: value for kind in kinds for name, value in FIELDS[kind](s, t).items()})
    assert_same_as_formula(attention(), inputs(s, t), mask, tolerance=TOLERANCE[torch.float32])


@given(
    kinds=st.sets(st.sampled_from(sorted(FIELDS))),
    s=st.integers(3, 9),
    t=st.integers(4, 9),
    g=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([4, 8, 10]),
    dv=st.sampled_from([4, 6, 8]),
    window=st.none() | st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
    scale=st.none() | st.floats(0.1, 2.0),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_attention_equals_the_formula_for_any_combination(
    kinds: set[str], s: int, t: int, g: int, d: int, dv: int, window: tuple[int, int] | None, scale: float | None,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    mask = AttentionMask(**{name: value for kind in sorted(kinds) for name, value in FIELDS[kind](s, t).items()})
    request, config = ask(g=g, d=d, dv=dv, window=window)
    module = TorchDotProductAttention(config, request=request, layer_number=3, softmax_scale=scale)
    tensors = inputs(s, t, g=g, d=d, dv=dv, dtype=torch.float64)
    assert_same_as_formula(module, tensors, mask, tolerance=1e-9, window=window, scale=scale)


@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("dv", [6, 8, 12])
@pytest.mark.parametrize("kind", ["causal", "keep", "bias_grad"])
def test_attention_reads_the_right_group_when_heads_share_keys(g: int, dv: int, kind: str) -> None:
    mask = AttentionMask(**FIELDS[kind](S, T))
    assert_same_as_formula(
        attention(g=g, dv=dv), inputs(S, T, g=g, dv=dv), mask, tolerance=TOLERANCE[torch.float32]
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["causal", "padding", "keep", "bias", "alibi"])
def test_attention_is_near_the_formula_when_precision_is_low(kind: str, dtype: torch.dtype) -> None:
    tensors = inputs(S, S, dtype=dtype)
    mask = AttentionMask(**FIELDS[kind](S, S))
    out = attention()(*tensors, mask=mask)
    exact = formula(*(x.double() for x in tensors), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["causal", "keep", "bias"])
def test_attention_takes_strided_inputs(kind: str) -> None:
    tensors = [torch.randn(D, B, S, 2 * N).movedim(0, -1)[:, :, ::2].requires_grad_() for _ in range(3)]
    assert not any(x.is_contiguous() or x.stride(-1) == 1 for x in tensors)
    assert_same_as_formula(attention(), tensors, AttentionMask(**FIELDS[kind](S, S)), tolerance=2e-5)


@pytest.mark.parametrize("window", [(2, 1), (0, None), (None, 0)])
@pytest.mark.parametrize("kinds", [None, ("causal",), ("window",), ("packed", "causal"), ("bias_grad",)], ids=str)
def test_attention_combines_the_requests_window_with_the_mask(
    window: tuple[int, int], kinds: tuple[str, ...] | None
) -> None:
    mask = None
    if kinds is not None:
        mask = AttentionMask(**{name: value for kind in kinds for name, value in FIELDS[kind](S, T).items()})
    assert_same_as_formula(attention(window=window), inputs(S, T), mask, tolerance=2e-5, window=window)


BLIND = {
    "causal": AttentionMask(causal=True),  # of 7 queries and 5 keys the first two see nothing
    "keep": AttentionMask(keep=torch.arange(T)[None, None, :, None].expand(1, 1, T, S) > 1),
    "padding": AttentionMask(causal=True, key_padding=torch.tensor([[True] * S, [False] * S])),
    "bias": AttentionMask(causal=True, bias=torch.randn(1, N, T, S)),
    "infinite bias": AttentionMask(bias=torch.tensor([-math.inf] * 2 + [0.5] * (T - 2)).expand(1, 1, S, T).mT.clone()),
    "alibi": AttentionMask(causal=True, alibi_slopes=torch.rand(N)),
}


def kernel_that_divides_by_zero(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
    **_: object,
) -> Tensor:
    """A kernel that gives NaN for a row without keys, as some do."""
    assert attn_mask is not None
    assert not is_causal
    assert not enable_gqa
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    visible = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return visible.softmax(-1) @ value


@pytest.mark.parametrize("mask", BLIND.values(), ids=BLIND.keys())
@pytest.mark.parametrize("kernel", ["torch", "dividing by zero"])
def test_attention_gives_zeros_and_no_gradient_when_a_row_sees_nothing(
    mask: AttentionMask, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "torch":
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel_that_divides_by_zero)
    tensors = inputs(T, S)
    assert_same_as_formula(attention(), tensors, mask, tolerance=2e-5)
    out = attention()(*tensors, mask=mask)
    assert torch.count_nonzero(out[:, :2]) == 0
    grads = torch.autograd.grad(out[:, :2].sum(), tensors)
    assert all(torch.count_nonzero(grad) == 0 for grad in grads)


def test_attention_gives_zeros_when_there_are_no_keys() -> None:
    query, key, value = inputs(S, 0)
    for mask in (None, AttentionMask(causal=True), AttentionMask(key_padding=torch.zeros(B, 0, dtype=torch.bool))):
        assert torch.count_nonzero(attention()(query, key, value, mask=mask)) == 0
