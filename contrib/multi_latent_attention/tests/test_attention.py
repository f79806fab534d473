"""MultiLatentAttention against its formula, against DeepSeek's in transformers, and in models."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transom
from torch import Tensor, nn
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import ConfigError, ResolutionError, SpecError
from transom.slots.attention import AttentionRequest
from transom.training.run import train
from transom_multi_latent_attention.attention import MultiLatentAttention
from transom_multi_latent_attention.sizes import LatentOptions, Sizes

SPEC = Path(__file__).parents[1] / "tiny-latent.yaml"
B, S, H = 2, 6, 24
SMALL = {"num_layers": 2, "hidden_size": H, "num_attention_heads": 3, "kv_channels": 8, "normalization": "RMSNorm"}
LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "v_head_dim": 5}
CAUSAL = AttentionMask(causal=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    plain = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "position_embedding_type": "rope"}
    return {
        "vocab_size": 64,
        "max_sequence_length": 32,
        "config": {**SMALL, **plain, **changes},
        "use": {"self_attention": "multi_latent_attention"},
        "options": {"self_attention": LATENT if options is None else options},
    }


def shaken(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def attention(options: dict[str, Any] | None = None, dtype: str = "float64", **changes: Any) -> MultiLatentAttention:
    made = transom.build(spec(options, **changes), dtype=dtype).layers[0].self_attention
    return shaken(made)


def turned(x: Tensor, position: int) -> Tensor:
    """Rotary positions of ``[d]``."""
    first, second = x.chunk(2)
    angles = position / 10000 ** (torch.arange(len(first), dtype=x.dtype) * 2 / len(x))
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])


def formula(module: MultiLatentAttention, x: Tensor, sees: Tensor, *, rope: bool) -> Tensor:
    """Equations 9 to 19 of the paper, one query and head at a time."""
    weights, sizes = dict(module.named_parameters()), module.sizes
    place = turned if rope else lambda each, position: each

    def normed(each: Tensor, name: str) -> Tensor:
        return each / (each.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[name]

    def projected(each: Tensor, name: str) -> Tensor:
        return each @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    asked = x
    if sizes.query_latent is not None:
        asked = normed(projected(x, "linear_q_down"), "q_layernorm.weight")
    queries = projected(asked, "linear_q").unflatten(-1, (sizes.heads, -1))
    latent, shared = projected(x, "linear_kv_down").split([sizes.latent, sizes.rotated], dim=-1)
    up = projected(normed(latent, "kv_layernorm.weight"), "linear_kv_up").unflatten(-1, (sizes.heads, -1))
    rows = []
    for b, i in itertools.product(range(x.shape[0]), range(x.shape[1])):
        keys, heads = [j for j in range(x.shape[1]) if sees[b, i, j]], []
        for h in range(sizes.heads):
            plain, rotated = queries[b, i, h].split([sizes.plain, sizes.rotated])
            scores = [plain @ up[b, j, h, : sizes.plain] + place(rotated, i) @ place(shared[b, j], j) for j in keys]
            weight = (torch.stack(scores) / math.sqrt(sizes.plain + sizes.rotated)).softmax(0)
            heads.append(weight @ up[b, keys, h, sizes.plain :])
        rows.append(torch.cat(heads))
    return projected(torch.stack(rows).view(*x.shape[:2], -1), "linear_proj")


LOWER = torch.ones(S, S).tril().bool().expand(B, S, S)
CASES = {
    "plain": ({}, {}, CAUSAL, LOWER),
    "query latent": ({"q_lora_rank": 7}, {}, CAUSAL, LOWER),
    "biases": ({"q_lora_rank": 7}, {"add_qkv_bias": True}, CAUSAL, LOWER),
    "values as wide as keys": ({"v_head_dim": 10}, {}, CAUSAL, LOWER),
    "no positions": ({}, {"position_embedding_type": "none"}, CAUSAL, LOWER),
    "everything": ({}, {}, AttentionMask(), torch.ones(B, S, S, dtype=torch.bool)),
    "window": ({}, {"window_size": (2, 0)}, CAUSAL, LOWER & torch.ones(S, S).triu(-2).bool()),
    "padding": (
        {},
        {},
        AttentionMask(causal=True, key_padding=torch.arange(S) < torch.tensor([[4], [S]])),
        LOWER & (torch.arange(S) < torch.tensor([[[4]], [[S]]])),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_equals_its_formula(name: str) -> None:
    options, changes, mask, sees = CASES[name]
    module = attention(LATENT | options, add_bias_linear=False, **changes)
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    out, bias = module(x, mask=mask)
    assert bias is None
    exact = formula(module, x, sees, rope="position_embedding_type" not in changes)
    torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(out)
    leaves = [x, *module.parameters()]
    found, wanted = (torch.autograd.grad((each * direction).sum(), leaves) for each in (out, exact))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("query_latent", [None, 7])
def test_attention_equals_that_of_transformers(query_latent: int | None) -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=64, hidden_size=H, intermediate_size=24, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=3, q_lora_rank=query_latent, first_k_dense_replace=1, max_position_embeddings=32,
        rms_norm_eps=1e-5, **LATENT,
    )  # fmt: skip
    model = transformers.DeepseekV3Model._from_config(config, attn_implementation="eager").eval()
    theirs = shaken(model.layers[0].self_attn)
    module = attention(
        LATENT | {"q_lora_rank": query_latent}, dtype="float32", add_bias_linear=False, rotary_interleaved=True,
        layernorm_epsilon=theirs.kv_a_layernorm.variance_epsilon,
    )  # fmt: skip
    names = {
        "linear_q": "q_proj" if query_latent is None else "q_b_proj",
        "linear_q_down": "q_a_proj",
        "q_layernorm": "q_a_layernorm",
        "linear_kv_down": "kv_a_proj_with_mqa",
        "kv_layernorm": "kv_a_layernorm",
        "linear_kv_up": "kv_b_proj",
        "linear_proj": "o_proj",
    }
    own = {name.removesuffix(".weight") for name in module.state_dict()}
    module.load_state_dict({f"{name}.weight": theirs.get_submodule(names[name]).weight for name in own})
    x = torch.randn(B, S, H, requires_grad=True)
    mask = torch.full((1, 1, S, S), torch.finfo(torch.float32).min).triu(1)
    turns = model.rotary_emb(x, torch.arange(S)[None])
    wanted, _ = theirs(hidden_states=x, position_embeddings=turns, attention_mask=mask)
    found, _ = module(x, mask=CAUSAL)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    (mine,), (other,) = (torch.autograd.grad(each.square().sum(), [x]) for each in (found, wanted))
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_attention_returns_its_output_bias() -> None:
    module = attention(add_bias_linear=True)
    assert module(torch.randn(B, S, H, dtype=torch.float64))[1] is module.linear_proj.bias


@pytest.mark.parametrize("kernel", ["dot_product", "torch_dot_product"])
def test_model_computes_the_same_by_any_core_attention(kernel: str) -> None:
    model = shaken(transom.build(spec()))
    other = transom.build(spec(), use={"core_attention": kernel})
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(64, (2, 20))
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_model_decodes_over_a_cache_as_it_reads_the_whole(groups: int) -> None:
    model = shaken(transom.build(spec(num_query_groups=groups), mode="infer", dtype="float64"))
    tokens = torch.randint(64, (2, 12))
    whole = model(tokens)
    model.setup_caches(2)
    steps = [model(tokens[:, :5], input_pos=torch.arange(5))]
    steps += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_cache_holds_what_the_config_says_and_no_more() -> None:
    model = transom.build(spec(num_query_groups=1), mode="infer")
    model.setup_caches(2, capacity=16)
    numbers = sum(buffer.numel() for buffer in model.cache.buffers() if buffer.is_floating_point())
    assert numbers == 2 * (16 + 1) * SMALL["num_layers"] * 2 * SMALL["kv_channels"]


def test_caches_without_room_for_the_latent_are_refused_when_it_is_planned() -> None:
    with pytest.raises(ConfigError) as caught:
        transom.plan(spec(LATENT | {"kv_lora_rank": 30}, num_query_groups=1))
    assert caught.value.what == (
        "num_query_groups is 1 and the self-attention is multi_latent_attention: its caches have room for 16 numbers a "
        "token, and 36 are kept."
    )
    assert caught.value.hint == "num_query_groups: 3, or a smaller kv_lora_rank"
    assert (caught.value.field, caught.value.value) == ("num_query_groups", 1)
    transom.plan(spec(LATENT | {"kv_lora_rank": 30}, num_query_groups=3))


def test_an_odd_part_to_rotate_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 numbers cannot be turned in pairs"):
        transom.plan(spec(LATENT | {"qk_rope_head_dim": 3}))


@pytest.mark.parametrize("name", list(LatentOptions.__dataclass_fields__))
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} is 0; at least 1 is needed"):
        transom.plan(spec({name: 0}))


def test_sizes_follow_from_the_config_where_options_say_nothing() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4)
    assert Sizes.of(config, None) == Sizes(
        heads=4, latent=32, query_latent=None, plain=16, rotated=8, value=16, cached=(4, 16)
    )


def test_plan_tells_the_sizes_that_options_make() -> None:
    nodes = {node.path: node for node in transom.plan(spec(LATENT | {"q_lora_rank": 7})).nodes()}
    at = "layers.0.self_attention."
    assert (nodes[f"{at}linear_kv_up"].request.input_size, nodes[f"{at}linear_kv_up"].request.output_size) == (10, 27)
    request = nodes[f"{at}core_attention"].request
    assert (request.num_attention_heads, request.num_query_groups) == (3, 3)
    assert (request.head_size, request.value_head_size) == (10, 5)
    assert "value_head_size" in request.features
    assert nodes[f"{at}rotary"].request.rotary_dim == 6


def test_attention_puts_weight_gradients_off_when_asked() -> None:
    grads = []
    for delayed in (False, True):
        torch.manual_seed(3)
        model = transom.build(spec(LATENT | {"q_lora_rank": 7}, delay_wgrad_compute=delayed))
        module = model.layers[0].self_attention
        module(torch.randn(1, 5, H))[0].square().sum().backward()
        if delayed:
            assert module.linear_kv_up.weight.grad is None
            module.backward_dw()
        grads.append([weight.grad for weight in module.parameters()])
    for wanted, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted)


REFUSED = {
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
    assert list(MultiLatentAttention.supports(request)) == [reason]
    with pytest.raises(ResolutionError, match=reason.split(";")[0]):
        transom.plan(spec(**changes))


def test_spec_is_tiny_llama_with_other_attentions() -> None:
    ours, theirs = transom.load_spec(SPEC), transom.load_spec("tiny-llama")
    assert ours.config == theirs.config
    model = transom.build(ours, device="meta")
    assert {type(layer.self_attention) for layer in model.layers} == {MultiLatentAttention}


def test_a_smaller_model_of_the_spec_learns(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["options"] = {"self_attention": {"kv_lora_rank": 32}}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    assert train(data, out=tmp_path / "run").validation_loss < 0.6 * math.log(256)
