"""The reference attention against loops in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transom.errors import ParallelError
from transom.slots import BuildContext
from transom.slots.core_attention import CoreAttentionRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.dot_product_attention import DotProductAttention

CPU = torch.device("cpu")
REQUEST = CoreAttentionRequest(
    context=BuildContext(), num_attention_heads=4, num_query_groups=2, head_size=3, value_head_size=5
)


@pytest.fixture
def attention(make_config: Any) -> Any:
    """Give a function that makes the reference in float64, with any change of config, request or constructor."""

    def make(config: dict[str, Any] | None = None, scale: float | None = None, **request: Any) -> DotProductAttention:
        whole = make_config(**({"params_dtype": "float64"} | (config or {})))
        return DotProductAttention(whole, request=replace(REQUEST, **request), layer_number=3, softmax_scale=scale)

    return make


def inputs(b: int = 2, s: int = 4, t: int = 6, g: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((b, s, 4, 3), (b, t, g, 3), (b, t, g, 5))
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: list[float] | None = None,
) -> Tensor:
    """The definition, one query and head at a time, in Python's floats."""
    query, key, value = query.detach(), key.detach(), value.detach()
    b, s, n, d = query.shape
    t, g = key.shape[1:3]
    out = torch.zeros(b, s, n, value.shape[3], dtype=torch.float64)
    for k in range(b):
        for h in range(n):
            group = h // (n // g)
            for i in range(s):
                logits = {}
                for j in range(t):
                    if keep is not None and not keep.expand(b, n, s, t)[k, h, i, j]:
                        continue
                    score = sum(float(query[k, i, h, c]) * float(key[k, j, group, c]) for c in range(d))
                    score *= 1 / math.sqrt(d) if scale is None else scale
                    score = score if softcap is None else softcap * math.tanh(score / softcap)
                    logits[j] = score + (0.0 if bias is None else float(bias.expand(b, n, s, t)[k, h, i, j]))
                total = sum(math.exp(x) for x in logits.values()) + (0.0 if sink is None else math.exp(sink[h]))
                for j, x in logits.items():
                    out[k, i, h] += math.exp(x) / total * value[k, j, group]
    return out


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=lambda g: f"{g} groups")
def test_attention_is_the_definition_when_nothing_is_masked(groups: int, attention: Any) -> None:
    q, k, v = inputs(g=groups)
    close(attention(num_query_groups=groups)(q, k, v), naive(q, k, v))


def test_attention_takes_strided_inputs_when_heads_are_views(attention: Any) -> None:
    mixed = torch.randn(2, 4, 2, 4, 3, dtype=torch.float64)  # [b, s, g, n/g + 2, d]
    q, k, v = mixed[..., :2, :].flatten(2, 3), mixed[..., 2, :], mixed[..., 3, :]
    assert not k.is_contiguous()
    close(attention(value_head_size=3)(q, k, v), naive(q, k, v))


@pytest.mark.parametrize(
    "options",
    [{"scale": 0.7}, {"softcap": 1.5}, {"softcap": 1.5, "scale": 2.0}],
    ids=["scale", "softcap", "both"],
)
def test_attention_scales_then_caps_when_asked(options: dict[str, float], attention: Any) -> None:
    q, k, v = inputs()
    close(attention(**options)(q, k, v), naive(q, k, v, **options))


def test_attention_adds_a_bias_after_the_cap_when_both_are_given(attention: Any) -> None:
    q, k, v = inputs()
    bias = torch.randn(1, 4, 4, 6, dtype=torch.float64)
    close(attention(softcap=0.5)(q, k, v, mask=AttentionMask(bias=bias)), naive(q, k, v, bias=bias, softcap=0.5))


@pytest.mark.parametrize(
    ("kind", "sink"),
    [("off-by-one", [0.0] * 4), ("learnable", [0.3, -1.0, 2.0, 30.0])],
)
def test_attention_gives_weight_to_a_sink_when_softmax_has_one(kind: str, sink: list[float], attention: Any) -> None:
    module = attention({"softmax_type": kind})
    if kind == "learnable":
        assert module.softmax_offset.tolist() == [0.0] * 4
        module.softmax_offset.data = torch.tensor(sink, dtype=torch.float64)
    q, k, v = inputs()
    keep = torch.rand(2, 1, 4, 6) > 0.5
    close(module(q, k, v, mask=AttentionMask(keep=keep)), naive(q, k, v, keep=keep, sink=sink))


def test_layer_scaling_changes_nothing_when_asked_for(attention: Any) -> None:
    q, k, v = inputs()
    scaled = attention({"apply_query_key_layer_scaling": True})
    assert torch.equal(scaled(q, k, v), attention()(q, k, v))


def test_layer_scaling_keeps_float16_finite_when_scores_are_large(attention: Any) -> None:
    q, k, v = (100 * torch.ones(1, 2, n, d, dtype=torch.float16) for n, d in ((4, 8), (2, 8), (2, 8)))
    scale = 1.0
    plain, scaled = (
        attention({"params_dtype": "float16", "apply_query_key_layer_scaling": on}, scale, value_head_size=8)
        for on in (False, True)
    )
    assert plain(q, k, v).isnan().any(), "80,000 does not fit"
    assert torch.equal(scaled(q, k, v), v.repeat_interleave(2, dim=2))


@pytest.mark.parametrize("s", [1, 4, 6, 8], ids=lambda s: f"s{s}")
@pytest.mark.parametrize("window", [None, (2, 0), (1, 1), (0, None)], ids=str)
def test_attention_combines_its_window_with_the_mask_when_both_hide(window: Any, s: int, attention: Any) -> None:
    q, k, v = inputs(s=s)
    padding = torch.tensor([[True] * 6, [False, False, True, True, True, False]])
    mask = AttentionMask(causal=True, key_padding=padding)
    visible = mask.as_bool(s, 6, device=CPU, window=window)
    got = attention(window=window)(q, k, v, mask=AttentionMask(causal=True, key_padding=padding))
    close(got, naive(q, k, v, keep=visible))
    blind = ~visible.any(-1)[:, 0]
    assert (got[blind] == 0).all()


def test_attention_applies_its_window_when_there_is_no_mask(attention: Any) -> None:
    q, k, v = inputs(s=6)
    keep = AttentionMask(window=(1, 2)).as_bool(6, 6, device=CPU)
    close(attention(window=(1, 2))(q, k, v), naive(q, k, v, keep=keep))


@pytest.mark.parametrize("how", ["keep", "bias"])
def test_attention_gives_zeros_both_ways_when_a_row_sees_nothing(how: str, attention: Any) -> None:
    keep = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    keep[0, 0, 1] = False
    keep[1, 0] = False
    bias = torch.zeros(2, 1, 4, 6, dtype=torch.float64).masked_fill(~keep, -torch.inf).requires_grad_()
    mask = AttentionMask(keep=keep) if how == "keep" else AttentionMask(bias=bias)
    q, k, v = inputs()
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        output = attention()(q, k, v, mask=mask)
        output.sum().backward()
    assert (output[0, 1] == 0).all()
    assert (output[1] == 0).all()
    close(output, naive(q, k, v, keep=keep))
    assert (q.grad[0, 1] == 0).all()
    for x in (q, k, v, *([bias] if how == "bias" else [])):
        assert x.grad.isfinite().all()
        assert (x.grad[1] == 0).all()


def test_gradients_are_right_when_everything_is_on(attention: Any) -> None:
    module = attention({"softmax_type": "learnable"}, softcap=3.0, window=(2, 1), num_attention_heads=2)
    q, k, v = (
        torch.randn(1, n, h, d, dtype=torch.float64, requires_grad=True)
        for n, h, d in ((3, 2, 2), (4, 1, 2), (4, 1, 3))
    )
    bias = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[True, True, False, True]])

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sink: Tensor) -> Tensor:
        mask = AttentionMask(causal=True, key_padding=padding, bias=bias)
        return torch.func.functional_call(module, {"softmax_offset": sink}, (q, k, v), {"mask": mask})

    sink = torch.tensor([0.1, -0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (q, k, v, bias, sink))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("in_float32", [True, False])
def test_attention_returns_the_querys_dtype_when_it_is_narrow(
    dtype: torch.dtype, in_float32: bool, attention: Any
) -> None:
    q, k, v = inputs()
    got = attention({"attention_softmax_in_fp32": in_float32})(q.to(dtype), k.to(dtype), v.to(dtype))
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), naive(q, k, v), rtol=0.05, atol=0.05)


def test_softmax_runs_in_float32_when_asked(attention: Any) -> None:
    t = 1000  # equal weights of 1/1000 add up to 1 in float32, to something else in bfloat16
    q, k = torch.zeros(1, 1, 4, 3, dtype=torch.bfloat16), torch.zeros(1, t, 2, 3, dtype=torch.bfloat16)
    v = torch.ones(1, t, 2, 1, dtype=torch.bfloat16)
    wide, narrow = (attention({"attention_softmax_in_fp32": on})(q, k, v) for on in (True, False))
    assert abs(float(wide[0, 0, 0, 0]) - 1) < 0.004
    assert wide.dtype is narrow.dtype is torch.bfloat16


def test_dropout_drops_weights_in_training_only_when_given(attention: Any) -> None:
    module = attention(dropout=0.25)
    q, k = torch.zeros(1, 50, 4, 3, dtype=torch.float64), torch.zeros(1, 200, 2, 3, dtype=torch.float64)
    v = torch.eye(200, dtype=torch.float64)[None, :, None].expand(1, 200, 2, 200)
    torch.manual_seed(0)
    weights = module(q, k, v)  # [1, 50, 4, 200]
    kept = weights > 0
    assert abs(float(kept.double().mean()) - 0.75) < 0.01
    close(weights[kept], torch.full_like(weights[kept], 1 / 200 / 0.75))
    close(module.eval()(q, k, v), torch.full((1, 50, 4, 200), 1 / 200, dtype=torch.float64))


def test_dropout_of_the_constructor_wins_when_it_is_given(make_config: Any) -> None:
    module = DotProductAttention(
        make_config(), request=replace(REQUEST, dropout=0.9), layer_number=1, attention_dropout=0.0
    )
    q, k, v = inputs(dtype=torch.float32)
    assert torch.equal(module(q, k, v), module.eval()(q, k, v))


def test_attention_never_repeats_keys_when_heads_are_grouped(attention: Any) -> None:
    q, k, v = inputs(g=1)

    class Sizes(torch.overrides.TorchFunctionMode):
        largest = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape[-2:] in ((6, 3), (6, 5), (3, 6)):
                Sizes.largest = max(Sizes.largest, result.numel())
            return result

    with Sizes():
        attention(num_query_groups=1)(q, k, v)
    assert 0 < Sizes.largest <= v.numel()


def test_sinks_are_split_like_the_heads(attention: Any) -> None:
    learnable = {"softmax_type": "learnable", "num_attention_heads": 8, "hidden_size": 8}
    state = attention(learnable).sharded_state_dict("core.", (), {"tensor_parallel_rank": 1, "data_parallel_rank": 2})
    shard = state["core.softmax_offset"]
    assert (shard.global_shape, shard.global_offset, shard.replica_id) == ((8,), (4,), (0, 2))
    whole = attention(learnable | {"num_attention_heads": 4})
    assert whole.sharded_state_dict()["softmax_offset"].global_shape == (4,)
    replica = whole.sharded_state_dict(metadata={"tensor_parallel_rank": 1})["softmax_offset"]
    assert (replica.global_offset, replica.replica_id) == ((0,), (1, 0))
    assert attention().sharded_state_dict() == {}


def test_sinks_of_an_unknown_rank_are_refused(attention: Any) -> None:
    split = attention({"softmax_type": "learnable", "num_attention_heads": 8, "hidden_size": 8})
    with pytest.raises(ParallelError, match=r"core\.softmax_offset: which of 2 parts this is, is not known") as caught:
        split.sharded_state_dict("core.")
    assert caught.value.data == {"key": "core.softmax_offset", "ranks": 2}
