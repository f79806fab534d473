"""DifferentialAttention against the paper's equations, written out in float64."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import ResolutionError
from transom.slots.attention import AttentionRequest
from transom.training.run import train
from transom_differential_attention.attention import DifferentialAttention, DifferentialScale

SPEC = Path(__file__).parents[1] / "tiny-differential.yaml"
B, S, H, D = 2, 6, 24, 4
SMALL = {"num_layers": 2, "hidden_size": H, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": D}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(**changes: Any) -> dict[str, Any]:
    plain = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "position_embedding_type": "none"}
    return {
        "vocab_size": 64,
        "max_sequence_length": 32,
        "config": {**SMALL, **plain, **changes},
        "use": {"self_attention": "differential_attention"},
    }


def shaken(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def attention(layer: int = 0, **changes: Any) -> DifferentialAttention:
    return shaken(transom.build(spec(**changes), dtype="float64").layers[layer].self_attention)


def turned(x: Tensor, position: int) -> Tensor:
    """Rotary positions of one head ``[d]``."""
    out, half = x.clone(), len(x) // 2
    for i in range(half):
        angle = position / 10000 ** (2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def formula(module: DifferentialAttention, x: Tensor, sees: Tensor, *, layer: int, rope: bool = False) -> Tensor:
    """One row, differential head and query at a time: equations 1 to 4."""
    config = module.config
    n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
    weights = dict(module.named_parameters())
    mixed = x @ weights["linear_qkv.weight"].T
    if "linear_qkv.bias" in weights:
        mixed = mixed + weights["linear_qkv.bias"]
    group = (n // g + 2) * d
    place = turned if rope else lambda each, position: each

    def part(b: int, i: int, of: int, number: int) -> Tensor:
        start = of * group + number * d
        return mixed[b, i, start : start + d]

    initial = 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))
    first, second = ((weights[f"scale.lambda_q{i}"] @ weights[f"scale.lambda_k{i}"]).exp() for i in (1, 2))
    share = first - second + initial
    rows = []
    for b, i in itertools.product(range(x.shape[0]), range(x.shape[1])):
        keys = [j for j in range(x.shape[1]) if sees[b, i, j]]
        heads = []
        for pair, h in itertools.product(range(g // 2), range(n // g)):
            wide = torch.stack([torch.cat([part(b, j, 2 * pair + k, n // g + 1) for k in (0, 1)]) for j in keys])
            maps = []
            for k in (0, 1):
                query = place(part(b, i, 2 * pair + k, h), i)
                scores = [query @ place(part(b, j, 2 * pair + k, n // g), j) / math.sqrt(d) for j in keys]
                maps.append(torch.stack(scores).softmax(0))
            head = (maps[0] - share * maps[1]) @ wide
            head = head / (head.square().mean() + config.layernorm_epsilon).sqrt() * weights["head_norm.weight"]
            heads.append(head * (1 - initial))
        rows.append(torch.cat(heads))
    return torch.stack(rows).view(*x.shape[:2], n * d) @ weights["linear_proj.weight"].T


CONFIGS = {
    "plain": {"add_bias_linear": False},
    "qkv bias": {"add_bias_linear": False, "add_qkv_bias": True},
    "no groups": {"add_bias_linear": False, "num_query_groups": 4},
    "wide groups": {"add_bias_linear": False, "num_attention_heads": 6, "num_query_groups": 2},
    "rotary": {"add_bias_linear": False, "position_embedding_type": "rope"},
}
CAUSAL = torch.ones(S, S).tril().bool().expand(B, S, S)
MASKS = {
    "everything": (AttentionMask(), torch.ones(B, S, S, dtype=torch.bool)),
    "causal": (AttentionMask(causal=True), CAUSAL),
    "window": (AttentionMask(causal=True, window=(2, 0)), CAUSAL & torch.ones(S, S).triu(-2).bool()),
    "padding": (
        AttentionMask(causal=True, key_padding=torch.arange(S) < torch.tensor([[4], [S]])),
        CAUSAL & (torch.arange(S) < torch.tensor([[[4]], [[S]]])),
    ),
}


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize(
    ("name", "mask"), [*((name, "causal") for name in CONFIGS), *(("plain", mask) for mask in MASKS)]
)
def test_attention_equals_its_formula(name: str, mask: str, layer: int) -> None:
    module = attention(layer - 1, **CONFIGS[name])
    given, sees = MASKS[mask]
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    out, bias = module(x, mask=given)
    assert bias is None
    exact = formula(module, x, sees, layer=layer, rope=name == "rotary")
    torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(out)
    leaves = [x, *module.parameters()]
    found, wanted = (torch.autograd.grad((each * direction).sum(), leaves) for each in (out, exact))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_attention_returns_its_output_bias() -> None:
    module = attention()
    _, bias = module(torch.randn(B, S, H, dtype=torch.float64))
    assert bias is module.linear_proj.bias


def test_attention_gives_zeros_to_a_query_that_sees_nothing() -> None:
    module = attention(add_bias_linear=False)
    keep = torch.ones(1, 1, S, S).tril(-1).bool()
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    out, _ = module(x, mask=AttentionMask(keep=keep))
    assert torch.count_nonzero(out[:, 0]) == 0
    (gradient,) = torch.autograd.grad(out.square().sum(), [x])
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("layer", "wanted"), [(1, 0.2), (2, 0.35550907), (28, 0.79981788)])
def test_scale_starts_as_published(layer: int, wanted: float) -> None:
    scale = DifferentialScale(64, layer, torch.float64)
    assert float(scale.initial) == pytest.approx(wanted, abs=1e-7)
    for vector in scale.parameters():
        nn.init.zeros_(vector)
    assert float(scale().detach()) == pytest.approx(wanted, abs=1e-7)


def test_scale_is_exact_whatever_becomes_of_the_model() -> None:
    scale = DifferentialScale(8, 3, torch.float32)
    assert not scale.to(torch.bfloat16).initial - torch.tensor(scale.value)
    with torch.device("meta"):
        blank = DifferentialScale(8, 3, torch.float32)
    assert float(blank.to_empty(device="cpu").initial) == pytest.approx(scale.value, abs=1e-7)
    assert "initial" not in scale.state_dict()


def test_model_has_few_more_parameters_than_without() -> None:
    ours, theirs = (
        sum(parameter.numel() for parameter in transom.build(data).parameters())
        for data in (spec(), spec() | {"use": {}})
    )
    assert ours - theirs == 2 * (4 * D + 2 * D)


@pytest.mark.parametrize("kernel", ["dot_product", "torch_dot_product"])
def test_model_computes_the_same_by_any_core_attention(kernel: str) -> None:
    model = shaken(transom.build(spec()))
    other = transom.build(spec(), use={"core_attention": kernel})
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(64, (2, 20))
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-4, rtol=1e-4)


def test_model_decodes_over_a_cache_as_it_reads_the_whole() -> None:
    data = spec(position_embedding_type="rope")
    model = shaken(transom.build(data, mode="infer", dtype="float64"))
    tokens = torch.randint(64, (2, 12))
    whole = model(tokens)
    model.setup_caches(2)
    steps = [model(tokens[:, :5], input_pos=torch.arange(5))]
    steps += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_attention_puts_weight_gradients_off_when_asked() -> None:
    grads = []
    for delayed in (False, True):
        torch.manual_seed(3)
        module = transom.build(spec(delay_wgrad_compute=delayed)).layers[0].self_attention
        module(torch.randn(1, 5, H))[0].square().sum().backward()
        if delayed:
            assert module.linear_qkv.weight.grad is None
            module.backward_dw()
        grads.append([module.linear_qkv.weight.grad, module.linear_proj.weight.grad])
    for wanted, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted)


REFUSED = {
    "odd heads": (
        {"num_attention_heads": 3, "num_query_groups": 3},
        "heads come in pairs, and num_attention_heads is 3",
    ),
    "odd groups": ({"num_query_groups": 1}, "heads come in pairs, and num_query_groups is 1"),
    "qk_layernorm": ({"qk_layernorm": True}, "it has no qk_layernorm"),
    "qk_l2_norm": ({"qk_l2_norm": True}, "it has no qk_l2_norm"),
    "gate": ({"attention_output_gate": True}, "it has no attention_output_gate"),
    "core_attn": (
        {"recompute_granularity": "selective", "recompute_modules": ("core_attn",)},
        "it does not recompute core_attn by itself; recompute_granularity: full recomputes whole layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attention_refuses_what_it_cannot_do(name: str) -> None:
    changes, reason = REFUSED[name]
    request = AttentionRequest(context=BuildContext(), config=TransformerConfig(**(SMALL | changes)))
    assert reason in list(DifferentialAttention.supports(request))
    with pytest.raises(ResolutionError, match=reason.split(";")[0]):
        transom.plan(spec(**changes))


def test_attention_supports_a_plain_request() -> None:
    request = AttentionRequest(context=BuildContext(), config=TransformerConfig(**SMALL))
    assert not list(DifferentialAttention.supports(request))


def test_plan_asks_for_values_wider_than_keys() -> None:
    nodes = {node.path: node for node in transom.plan(spec()).nodes()}
    request = nodes["layers.0.self_attention.core_attention"].request
    assert (request.num_attention_heads, request.num_query_groups) == (2, 1)
    assert (request.head_size, request.value_head_size) == (D, 2 * D)
    assert "value_head_size" in request.features


def test_spec_is_tiny_llama_with_other_attentions() -> None:
    ours, theirs = transom.load_spec(SPEC), transom.load_spec("tiny-llama")
    assert ours.config == theirs.config
    model = transom.build(ours, device="meta")
    assert {type(layer.self_attention) for layer in model.layers} == {DifferentialAttention}


def test_a_smaller_model_of_the_spec_learns(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    assert train(data, out=tmp_path / "run").validation_loss < 0.6 * math.log(256)
