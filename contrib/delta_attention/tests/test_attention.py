"""DeltaAttention against its formula, and in models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import MaskError, ResolutionError, SpecError
from transom.slots.attention import AttentionRequest
from transom.training.run import train
from transom_delta_attention.attention import DeltaAttention

SPEC = Path(__file__).parents[1] / "tiny-delta.yaml"
B, S, H, D = 2, 7, 24, 4
SMALL = {
    "num_layers": 2, "hidden_size": H, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": D,
    "attention_dropout": 0.0,
}  # fmt: skip
CAUSAL = AttentionMask(causal=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    data = {
        "vocab_size": 64,
        "max_sequence_length": 32,
        "config": {**SMALL, "hidden_dropout": 0.0, "position_embedding_type": "none", **changes},
        "use": {"self_attention": "delta_attention"},
    }
    return data if options is None else data | {"options": {"self_attention": options}}


def shaken(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def attention(**changes: Any) -> DeltaAttention:
    return shaken(transom.build(spec({"chunk": 3}, **changes), dtype="float64").layers[0].self_attention)


def turned(x: Tensor, position: int) -> Tensor:
    """Rotary positions of one head ``[d]``."""
    first, second = x.chunk(2)
    angles = position / 10000 ** (torch.arange(len(first), dtype=x.dtype) * 2 / len(x))
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])


def formula(module: DeltaAttention, x: Tensor, real: Tensor, *, rope: bool) -> Tensor:
    """One row, head and token at a time; padding corrects nothing."""
    config, weights = module.config, dict(module.named_parameters())
    n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
    mixed = x @ weights["linear_qkv.weight"].T + weights.get("linear_qkv.bias", 0)
    groups = mixed.view(*x.shape[:2], g, n // g + 2, d)
    strengths = (x @ weights["linear_beta.weight"].T).sigmoid()

    def unit(each: Tensor, position: int) -> Tensor:
        each = each * each.sigmoid()
        return turned(each / each.norm(), position) if rope else each / each.norm()

    rows = []
    for b in range(x.shape[0]):
        heads = []
        for h in range(n):
            memory, group, outputs = x.new_zeros(d, d), groups[b, :, h // (n // g)], []
            for i in range(x.shape[1]):
                key, beta = unit(group[i, n // g], i), strengths[b, i, h // (n // g)] * real[b, i]
                memory = memory + beta * torch.outer(key, group[i, n // g + 1] - memory.T @ key)
                out = memory.T @ unit(group[i, h % (n // g)], i)
                outputs.append(out / (out.square().mean() + config.layernorm_epsilon).sqrt())
            heads.append(torch.stack(outputs) * weights["head_norm.weight"])
        rows.append(torch.cat(heads, dim=-1))
    return torch.stack(rows) @ weights["linear_proj.weight"].T


CONFIGS = {
    "plain": {},
    "qkv bias": {"add_qkv_bias": True},
    "one memory a head": {"num_query_groups": 4},
    "one memory": {"num_query_groups": 1},
    "rotary": {"position_embedding_type": "rope"},
}


@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_attention_equals_its_formula(name: str, padding: bool) -> None:
    module = attention(add_bias_linear=False, **CONFIGS[name])
    real = torch.ones(B, S, dtype=torch.bool)
    if padding:
        real[0, :2], real[1, 3], real[1, 6] = False, False, False
    mask = AttentionMask(causal=True, key_padding=real if padding else None)
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    out, bias = module(x, mask=mask)
    assert bias is None
    exact = formula(module, x, real, rope=name == "rotary")
    torch.testing.assert_close(out, exact, atol=1e-11, rtol=1e-9)
    direction = torch.randn_like(out)
    leaves = [x, *module.parameters()]
    found, wanted = (torch.autograd.grad((each * direction).sum(), leaves) for each in (out, exact))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)


def test_attention_computes_the_same_in_any_chunks() -> None:
    one = transom.build(spec({"chunk": 1}), dtype="float64", seed=0)
    other = transom.build(spec({"chunk": 64}), dtype="float64", seed=0)
    tokens = torch.randint(64, (2, 20))
    torch.testing.assert_close(other(tokens), one(tokens))


def test_padding_on_the_left_changes_nothing() -> None:
    module = attention()
    x = torch.randn(1, S, H, dtype=torch.float64)
    real = torch.arange(S)[None] >= 3
    padded, _ = module(x, mask=AttentionMask(causal=True, key_padding=real))
    torch.testing.assert_close(padded[:, 3:], module(x[:, 3:], mask=CAUSAL)[0])


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_model_decodes_over_a_cache_as_it_reads_the_whole(positions: str) -> None:
    model = shaken(transom.build(spec(position_embedding_type=positions), mode="infer", dtype="float64"))
    tokens = torch.randint(64, (2, 12))
    whole = model(tokens)
    model.setup_caches(2)
    steps = [model(tokens[:, :5], input_pos=torch.arange(5))]
    steps += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_model_decodes_rows_that_are_padded_on_the_left() -> None:
    model = shaken(transom.build(spec(), mode="infer", dtype="float64"))
    tokens = torch.randint(64, (2, 8))
    positions = torch.stack([torch.arange(8) - 3, torch.arange(8)])
    alone, whole = model(tokens[:1, 3:]), model(tokens[1:])
    model.setup_caches(2)
    steps = [model(tokens[:, :6], input_pos=positions[:, :6])]
    steps += [model(tokens[:, i : i + 1], input_pos=positions[:, i : i + 1]) for i in (6, 7)]
    found = torch.cat(steps, dim=1)
    torch.testing.assert_close(found[:1, 3:], alone)
    torch.testing.assert_close(found[1:], whole)


WRONG_MASKS = {
    "nothing": (None, "everyone to everyone"),
    "everything": (AttentionMask(), "everyone to everyone"),
    "packed": (AttentionMask(causal=True, query_segments=torch.zeros(1, S, dtype=torch.long)), "packed"),
    "keep": (AttentionMask(causal=True, keep=torch.ones(1, 1, S, S, dtype=torch.bool)), "keep"),
    "ring": (AttentionMask(causal=True, key_positions=torch.arange(S)), "key_positions"),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_attention_refuses_masks_that_it_cannot_see_by(name: str) -> None:
    mask, kinds = WRONG_MASKS[name]
    with pytest.raises(MaskError, match=f"no mask can say otherwise; this one says {kinds}") as caught:
        attention()(torch.randn(1, S, H, dtype=torch.float64), mask=mask)
    assert caught.value.available == ("causal", "padding")


def test_attention_puts_weight_gradients_off_when_asked() -> None:
    grads = []
    for delayed in (False, True):
        torch.manual_seed(3)
        module = transom.build(spec(delay_wgrad_compute=delayed)).layers[0].self_attention
        module(torch.randn(1, 5, H), mask=CAUSAL)[0].square().sum().backward()
        if delayed:
            assert module.linear_qkv.weight.grad is None
            module.backward_dw()
        grads.append([each.weight.grad for each in (module.linear_qkv, module.linear_beta, module.linear_proj)])
    for wanted, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted)


REFUSED = {
    "window": ({"window_size": (3, 0)}, "its memory holds all that came before, without a window"),
    "dropout": ({"attention_dropout": 0.1}, "it has no attention weights to drop, and attention_dropout is 0.1"),
    "softcap": ({"attn_logit_softcapping": 20.0}, "it has no attn_logit_softcapping"),
    "sinks": ({"softmax_type": "learnable"}, "it has no softmax_type"),
    "qk_layernorm": ({"qk_layernorm": True}, "it has no qk_layernorm"),
    "qk_l2_norm": ({"qk_l2_norm": True}, "it has no qk_l2_norm"),
    "gate": ({"attention_output_gate": True}, "it has no attention_output_gate"),
    "alibi": (
        {"position_embedding_type": "alibi"},
        "it adds no biases to scores, and position_embedding_type is alibi",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attention_refuses_what_it_cannot_do(name: str) -> None:
    changes, reason = REFUSED[name]
    request = AttentionRequest(context=BuildContext(), config=TransformerConfig(**(SMALL | changes)))
    assert reason in list(DeltaAttention.supports(request))
    with pytest.raises(ResolutionError):
        transom.plan(spec(**changes))


def test_attention_refuses_packed_sequences_when_it_is_planned() -> None:
    with pytest.raises(ResolutionError, match="cannot leave out what masks of kind packed hide"):
        transom.plan(spec() | {"masks": ["packed"]})


def test_attention_may_have_dropout_in_a_config_for_inference() -> None:
    assert transom.build(spec(attention_dropout=0.1), mode="infer")


def test_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(SpecError, match="chunk is 0; at least 1 is needed"):
        transom.plan(spec({"chunk": 0}))


def test_spec_is_tiny_llama_with_other_attentions() -> None:
    ours, theirs = transom.load_spec(SPEC), transom.load_spec("tiny-llama")
    assert ours.config == theirs.config.replace(position_embedding_type="none")
    model = transom.build(ours, device="meta")
    assert {type(layer.self_attention) for layer in model.layers} == {DeltaAttention}


def test_a_smaller_model_of_the_spec_learns(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    assert train(data, out=tmp_path / "run").validation_loss < 0.6 * math.log(256)
