"""TorchFlexAttention against its formula, one pair of a query and a key at a time in float64, and what it refuses."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transom
from torch import Tensor
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import InputError, ResolutionError
from transom.registry.resolve import resolve
from transom.slots.core_attention import CORE_ATTENTION, CoreAttentionRequest
from transom_torch_dot_product.flex import TorchFlexAttention

B, N, S, T, D = 2, 4, 5, 7, 8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def segments(s: int, t: int) -> dict[str, Tensor]:
    """Two sequences and padding; the second row has a segment of queries without any key."""
    query = torch.tensor([[0] * (s // 2) + [1] * (s - s // 2), [-1] + [0] * (s - 2) + [3]])
    key = torch.tensor([[0] * (t // 2) + [1] * (t - t // 2), [-1, -1] + [0] * (t - 3) + [5]])
    return {"query_segments": query, "key_segments": key}


# What a mask may hold, by the card's feature: (s, t) -> fields.
FIELDS: dict[str, Callable[[int, int], dict[str, Any]]] = {
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
    "bias": lambda s, t: {"bias": torch.randn(1, N, s, t).masked_fill(torch.rand(1, N, s, t) < 0.2, -math.inf)},
    "alibi": lambda s, t: {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
}
COMBINED = [("packed", "window"), ("packed", "causal", "padding"), ("positions", "causal", "alibi"), ("keep", "bias")]


def positions_of(mask: AttentionMask, s: int, t: int) -> tuple[list[list[int]], list[list[int]]]:
    """Spell positions out: those given; else the last query is at its segment's last key."""
    if mask.query_positions is not None and mask.key_positions is not None:
        return mask.query_positions.tolist(), mask.key_positions.tolist()
    if mask.query_segments is None or mask.key_segments is None:
        return [list(range(t - s, t))] * B, [list(range(t))] * B
    queries, keys = [], []
    for query, key in zip(mask.query_segments.tolist(), mask.key_segments.tolist(), strict=True):
        queries.append([key.count(x) - 1 - query[i + 1 :].count(x) for i, x in enumerate(query)])
        keys.append([key[:j].count(x) for j, x in enumerate(key)])
    return queries, keys


def sees(mask: AttentionMask, window: Any, at: tuple[int, int, int], p: int, q: int) -> bool:
    """Decide of the query i at position p and the key j at position q in row b, from what the fields mean."""
    b, i, j = at
    says = [True]
    if mask.causal:
        says.append(q <= p or (mask.prefix_lengths is not None and q < int(mask.prefix_lengths[b])))
    says += [p - q <= left and q - p <= right for left, right in (w for w in (mask.window, window) if w)]
    if mask.query_segments is not None and mask.key_segments is not None:
        says.append(int(mask.query_segments[b, i]) == int(mask.key_segments[b, j]) >= 0)
    if mask.query_positions is not None:
        says.append(p >= 0 and q >= 0)
    if mask.key_padding is not None:
        says.append(bool(mask.key_padding[b, j]))
    if mask.keep is not None:
        says.append(bool(mask.keep[b, 0, i, j]))
    return all(says)


def formula(
    tensors: list[Tensor], mask: AttentionMask, *, window: Any = None, softcap: float | None = None,
    scale: float | None = None, sinks: list[float] | None = None,
) -> Tensor:  # fmt: skip
    """Attention by its definition: for each query the sum of ``exp(score) * value`` over that of ``exp(score)``."""
    query, key, value = (x.double() for x in tensors)
    (_, s, n, d), (t, g) = query.shape, key.shape[1:3]
    query_at, key_at = positions_of(mask, s, t)
    out = torch.zeros(B, s, n, value.shape[-1], dtype=torch.float64)
    for b, h, i in itertools.product(range(B), range(n), range(s)):
        group, total = h // (n // g), math.exp(sinks[h]) if sinks else 0.0
        for j in range(t):
            p, q = query_at[b][i], key_at[b][j]
            if not sees(mask, window, (b, i, j), p, q):
                continue
            score = float(query[b, i, h] @ key[b, j, group]) * (scale or d**-0.5)
            score = score if softcap is None else softcap * math.tanh(score / softcap)
            score += 0.0 if mask.bias is None else float(mask.bias[0, h, i, j])
            score -= 0.0 if mask.alibi_slopes is None else float(mask.alibi_slopes[h]) * abs(p - q)
            out[b, i, h] += math.exp(score) * value[b, j, group]
            total += math.exp(score)
        out[b, i, h] /= total or 1.0
    return out


def ask(*, g: int = N, dv: int = D, features: frozenset[str] = frozenset(), **fields: Any) -> CoreAttentionRequest:
    context = BuildContext(**({"mode": "infer"} | fields.pop("context", {})))
    sizes = {"num_attention_heads": N, "num_query_groups": g, "head_size": D, "value_head_size": dv}
    return CoreAttentionRequest(context=context, features=features, **(sizes | fields))


def attention(
    *, scale: float | None = None, layer_number: int = 1, softmax_type: str = "vanilla", **fields: Any
) -> TorchFlexAttention:
    config = TransformerConfig(num_layers=3, hidden_size=N * D, num_attention_heads=N, softmax_type=softmax_type)
    made = TorchFlexAttention(config, request=ask(**fields), layer_number=layer_number, softmax_scale=scale)
    return made.requires_grad_(False)


def inputs(s: int, t: int, *, g: int = N, dv: int = D, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(B, *shape, dtype=dtype) for shape in ((s, N, D), (t, g, D), (t, g, dv))]


def mask_of(kinds: tuple[str, ...], s: int, t: int) -> AttentionMask:
    return AttentionMask(**{name: value for kind in kinds for name, value in FIELDS[kind](s, t).items()})


def close(out: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in FIELDS), *COMBINED], ids="+".join)
@pytest.mark.parametrize(("s", "t"), [(S, T), (T, S)], ids=["s<t", "s>t"])
def test_flex_equals_the_formula(kinds: tuple[str, ...], s: int, t: int) -> None:
    mask, tensors = mask_of(kinds, s, t), inputs(s, t)
    close(attention()(*tensors, mask=mask), formula(tensors, mask), torch.float64)


@pytest.mark.parametrize("kinds", [None, ("causal",), ("packed", "causal"), ("bias",)], ids=str)
def test_flex_combines_the_requests_fields_with_the_mask(kinds: tuple[str, ...] | None) -> None:
    mask = None if kinds is None else mask_of(kinds, S, T)
    tensors = inputs(S, T, g=2, dv=12)
    out = attention(g=2, dv=12, window=(2, 1), softcap=1.5, scale=0.7)(*tensors, mask=mask)
    exact = formula(tensors, mask or AttentionMask(), window=(2, 1), softcap=1.5, scale=0.7)
    close(out, exact, torch.float64)


@pytest.mark.parametrize("softmax_type", ["off-by-one", "learnable"])
@pytest.mark.parametrize("kinds", [(), ("causal", "padding"), ("alibi",)], ids="+".join)
def test_flex_gives_a_sink_its_share(softmax_type: str, kinds: tuple[str, ...]) -> None:
    module, tensors = attention(softmax_type=softmax_type, g=2), inputs(T, S, g=2)
    sinks = [0.0] * N
    if module.softmax_offset is not None:
        sinks = [-1.0, 0.0, 0.5, 2.0]
        module.softmax_offset.copy_(torch.tensor(sinks))
    mask = mask_of(kinds, T, S)
    close(module(*tensors, mask=mask), formula(tensors, mask, sinks=sinks), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kinds", [("causal",), ("bias", "alibi")], ids="+".join)
def test_flex_is_near_the_formula_when_precision_is_lower(kinds: tuple[str, ...], dtype: torch.dtype) -> None:
    mask, tensors = mask_of(kinds, S, S), inputs(S, S, dtype=dtype)
    close(attention()(*tensors, mask=mask), formula(tensors, mask), dtype)


def test_flex_takes_strided_inputs() -> None:
    tensors = [torch.randn(D, B, S, 2 * N, dtype=torch.float64).movedim(0, -1)[:, :, ::2] for _ in range(3)]
    mask = AttentionMask(causal=True)
    close(attention()(*tensors, mask=mask), formula(tensors, mask), torch.float64)


@pytest.mark.parametrize("mask", [None, AttentionMask(causal=True)], ids=["no mask", "causal"])
def test_flex_gives_zeros_when_there_are_no_keys(mask: AttentionMask | None) -> None:
    out = attention(dv=12)(*inputs(S, 0, dv=12), mask=mask)
    assert out.shape == (B, S, N, 12)
    assert torch.count_nonzero(out) == 0


def test_flex_is_built_on_meta_and_pickled() -> None:
    with torch.device("meta"):
        module = attention(softmax_type="learnable")
    assert module.softmax_offset is not None
    assert module.softmax_offset.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert module.state_dict()["softmax_offset"].tolist() == [0.0] * N
    tensors = inputs(S, T)
    assert torch.equal(pickle.loads(pickle.dumps(module))(*tensors), module(*tensors))


def test_flex_shares_a_rendered_mask_between_layers() -> None:
    mask, device = AttentionMask(causal=True, alibi_slopes=torch.rand(N)), torch.device("cpu")
    blocks, add = mask.as_block_mask(S, T, device=device), mask.as_score_mod(S, T, device=device)
    for number in (1, 2):
        attention(layer_number=number)(*inputs(S, T), mask=mask)
    assert mask.as_block_mask(S, T, device=device) is blocks
    assert mask.as_score_mod(S, T, device=device) is add


def test_flex_cannot_train_on_the_cpu() -> None:
    query, key, value = inputs(S, T)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        attention()(query.requires_grad_(), key, value)


def test_flex_refuses_to_be_compiled_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(InputError, match="gives wrong numbers for some masks") as caught:
        attention()(*inputs(S, T))
    assert caught.value.asked_by == "torch.compile of torch_flex"
    assert "torch_dot_product" in str(caught.value.hint)


def test_compiling_stops_before_any_number_is_wrong() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="raise InputError"):
        torch.compile(attention(), fullgraph=True, backend="eager")(*inputs(S, T))


REFUSED = {
    "no backward pass on the cpu": ({"mode": "train"}, {}),
    "its gradient was never tried": ({"mode": "train", "device": "cuda"}, {"features": frozenset({"bias_grad"})}),
    "the same bits": ({"mode": "train", "device": "cuda", "deterministic": True}, {}),
    "wrong numbers for some masks": ({"compile": True}, {}),
    "no float64 kernel": (
        {"compile": True, "device": "cuda", "dtype": "float64"},
        {"head_size": 64, "value_head_size": 64},
    ),
    "heads of size 12 are smaller than 16": (
        {"compile": True, "device": "cuda"},
        {"head_size": 64, "value_head_size": 12},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_supports_gives_the_reason_when_it_cannot_serve(reason: str) -> None:
    context, fields = REFUSED[reason]
    (said,) = TorchFlexAttention.supports(ask(context=context, **fields))
    assert reason in said


@pytest.mark.parametrize("context", [{}, {"device": "cuda"}, {"device": "cuda", "mode": "train"}], ids=str)
def test_supports_says_nothing_when_it_can_serve(context: dict[str, Any]) -> None:
    assert list(TorchFlexAttention.supports(ask(context=context))) == []


def test_card_declares_all_but_dropout_and_shares_of_sequences() -> None:
    (listed,) = [i for i in transom.list_implementations("core_attention") if i.name == "torch_flex"]
    assert listed.card is not None
    assert set(listed.card.features) == set(CORE_ATTENTION.features) - {"dropout", "context_parallel"}


@pytest.mark.parametrize(
    ("features", "context", "stage", "reason"),
    [
        ({"dropout", "causal"}, {}, "features", "its card does not declare dropout"),
        ({"causal"}, {"mode": "train"}, "supports", "no backward pass on the cpu"),
    ],
    ids=["dropout", "training on the cpu"],
)
def test_flex_is_refused_with_a_reason(features: set[str], context: dict[str, str], stage: str, reason: str) -> None:
    with pytest.raises(ResolutionError, match=reason) as caught:
        resolve("core_attention", "torch_flex", ask(features=frozenset(features), context=context))
    assert [verdict.stage for verdict in caught.value.resolution.verdicts] == [stage]
    chain = resolve("core_attention", "torch_flex | dot_product", ask(features=frozenset(features), context=context))
    assert chain.chosen.name == "dot_product"
