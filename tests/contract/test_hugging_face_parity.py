"""Models and modules of Hugging Face transformers, small and random, give what ours give with the same weights.

Both compute in float32. Gradients are compared too: what turns weights into ours is linear, so it turns gradients as
well. Ours come from specs, with core's own implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import AttentionMask, TransformerConfig
from transom.transformer.position_bias import RelativePositionBias

transformers = pytest.importorskip("transformers")

LAYERS, HIDDEN, HEADS, GROUPS, FFN, VOCAB, LENGTH = 2, 32, 4, 2, 48, 61, 24
State = Mapping[str, Tensor]
BASE = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": FFN,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
LLAMA = BASE | {
    "num_query_groups": GROUPS,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-6,
    "position_embedding_type": "rope",
    "gated_linear_unit": True,
    "activation_func": "silu",
    "add_bias_linear": False,
}
THEIR_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "attn_implementation": "eager",
}
THEIR_LLAMA = THEIR_SIZES | {"num_key_value_heads": GROUPS, "rms_norm_eps": 1e-6}
NORMS = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
POST_NORMS = {
    "post_attention_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}
FOUR_NORMS = POST_NORMS | {"input_layernorm": "input_layernorm", "pre_feedforward_layernorm": "pre_mlp_layernorm"}


def fused_qkv(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """Stack projections (or their biases), whose rows are heads, as ``[q ... q k v]`` a group."""
    per_group = [x.reshape(groups, -1, *x.shape[1:]) for x in (query, key, value)]
    return torch.cat(per_group, dim=1).flatten(0, 1)


def from_llama(theirs: State, norms: Mapping[str, str] = NORMS) -> dict[str, Tensor]:
    """Rename and fuse the weights of Llama and its relatives; ``norms`` says which is which of ours."""
    ours = {
        "embedding.word_embeddings.weight": theirs["model.embed_tokens.weight"],
        "final_layernorm.weight": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        ours["output_layer.weight"] = theirs["lm_head.weight"]
    for i in range(LAYERS):
        there, here = f"model.layers.{i}.", f"layers.{i}."
        qkv = (theirs[f"{there}self_attn.{x}_proj.weight"] for x in "qkv")
        ours[f"{here}self_attention.linear_qkv.weight"] = fused_qkv(*qkv, groups=GROUPS)
        ours[f"{here}self_attention.linear_proj.weight"] = theirs[f"{there}self_attn.o_proj.weight"]
        gate_up = [theirs[f"{there}mlp.{x}_proj.weight"] for x in ("gate", "up")]
        ours[f"{here}mlp.linear_fc1.weight"] = torch.cat(gate_up)
        ours[f"{here}mlp.linear_fc2.weight"] = theirs[f"{there}mlp.down_proj.weight"]
        ours |= {f"{here}{mine}.weight": theirs[f"{there}{name}.weight"] for name, mine in norms.items()}
        for x in "qk":
            if f"{there}self_attn.{x}_norm.weight" in theirs:
                ours[f"{here}self_attention.{x}_layernorm.weight"] = theirs[f"{there}self_attn.{x}_norm.weight"]
    return ours


def from_gpt2(theirs: State) -> dict[str, Tensor]:
    """Rename, transpose (theirs are ``[in, out]``) and regroup the weights of GPT-2."""
    ours = {
        "embedding.word_embeddings.weight": theirs["transformer.wte.weight"],
        "embedding.position_embeddings.weight": theirs["transformer.wpe.weight"],
        "final_layernorm.weight": theirs["transformer.ln_f.weight"],
        "final_layernorm.bias": theirs["transformer.ln_f.bias"],
    }
    places = {
        "ln_1": "input_layernorm",
        "attn.c_proj": "self_attention.linear_proj",
        "ln_2": "pre_mlp_layernorm",
        "mlp.c_fc": "mlp.linear_fc1",
        "mlp.c_proj": "mlp.linear_fc2",
    }
    for i in range(LAYERS):
        there, here = f"transformer.h.{i}.", f"layers.{i}."
        for kind in ("weight", "bias"):
            qkv = theirs[f"{there}attn.c_attn.{kind}"].t().chunk(3)
            ours[f"{here}self_attention.linear_qkv.{kind}"] = fused_qkv(*qkv, groups=HEADS)
            ours |= {f"{here}{mine}.{kind}": theirs[f"{there}{name}.{kind}"].t() for name, mine in places.items()}
    return ours


def from_gpt_neox(theirs: State) -> dict[str, Tensor]:
    """Rename the weights of GPT-NeoX, whose fused projection has our layout."""
    ours = {
        "embedding.word_embeddings.weight": theirs["gpt_neox.embed_in.weight"],
        "final_layernorm.weight": theirs["gpt_neox.final_layer_norm.weight"],
        "final_layernorm.bias": theirs["gpt_neox.final_layer_norm.bias"],
        "output_layer.weight": theirs["lm_head.weight"],
    }
    places = {
        "input_layernorm": "input_layernorm",
        "attention.query_key_value": "self_attention.linear_qkv",
        "attention.dense": "self_attention.linear_proj",
        "post_attention_layernorm": "pre_mlp_layernorm",
        "mlp.dense_h_to_4h": "mlp.linear_fc1",
        "mlp.dense_4h_to_h": "mlp.linear_fc2",
    }
    for i in range(LAYERS):
        for name, mine in places.items():
            for kind in ("weight", "bias"):
                ours[f"layers.{i}.{mine}.{kind}"] = theirs[f"gpt_neox.layers.{i}.{name}.{kind}"]
    return ours


def randomised(model: nn.Module) -> nn.Module:
    """Draw every parameter anew, wide enough for differences to be seen: no bias is zero and no two scales alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 if parameter.dim() == 1 else 0.0))
    return model


def their_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compare within a share of the largest number."""
    scale = expected.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}")


def check_gradients(ours: nn.Module, expected: State) -> None:
    """Check that every parameter of ours has the gradient that theirs tells."""
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, expected[name], 1e-5, f"the gradient of {name}")


def our_decoder(config: Mapping[str, Any], *, tied: bool) -> Any:
    return transom.build(
        {
            "vocab_size": VOCAB,
            "max_sequence_length": LENGTH,
            "share_embeddings_and_output_weights": tied,
            "config": dict(config),
        }
    )


def check_decoder(theirs: nn.Module, config: Mapping[str, Any], convert: Callable[[State], Any], *, tied: bool) -> None:
    """Compare logits of the same tokens, and the gradients of all parameters."""
    theirs = randomised(theirs).eval()
    ours = our_decoder(config, tied=tied)
    ours.load_state_dict(convert(dict(theirs.named_parameters())))
    tokens = torch.randint(VOCAB, (2, LENGTH))
    expected, got = theirs(tokens, use_cache=False).logits, ours(tokens)
    close(got, expected, 1e-5, "logits")
    direction = torch.randn_like(expected)
    for logits in (expected, got):
        (logits * direction).sum().backward()
    check_gradients(ours, convert(their_gradients(theirs)))


STRETCHED = {"original_max_position_embeddings": 8, "factor": 4.0}
ROPE: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {"type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0} | STRETCHED,
    "yarn": {"type": "yarn", "beta_fast": 2.0, "beta_slow": 0.5} | STRETCHED,
}


@pytest.mark.parametrize("rope_type", ROPE)
def test_llama_gives_their_logits_when_rope_is(rope_type: str) -> None:
    scaling = ROPE[rope_type]
    numbers = {name: value for name, value in (scaling or {}).items() if name != "type"}
    rope = {"rope_type": rope_type, "rope_theta": 500.0, **numbers}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**THEIR_LLAMA, rope_parameters=rope))
    check_decoder(theirs, LLAMA | {"rotary_base": 500.0, "rope_scaling": scaling}, from_llama, tied=False)


def test_qwen3_gives_their_logits_with_norms_of_queries_and_keys() -> None:
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**THEIR_LLAMA, head_dim=12))
    check_decoder(theirs, LLAMA | {"kv_channels": 12, "qk_layernorm": True}, from_llama, tied=False)


def test_olmo2_gives_their_logits_with_norms_after_the_branches() -> None:
    """Without OLMo 2's norm of queries and keys over all heads together, which no field of ours asks for."""
    theirs = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**THEIR_LLAMA, pad_token_id=None))
    for layer in theirs.model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()
    post = {"pre_layernorm": False, "post_attention_layernorm": True, "post_mlp_layernorm": True}
    check_decoder(theirs, LLAMA | post, lambda state: from_llama(state, POST_NORMS), tied=False)


def test_gpt2_gives_their_logits_with_learned_positions() -> None:
    sizes = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": FFN, "n_positions": LENGTH}
    their_config = transformers.GPT2Config(**sizes, vocab_size=VOCAB, attn_implementation="eager")
    config = BASE | {"activation_func": "gelu_tanh", "position_embedding_type": "learned_absolute"}
    check_decoder(transformers.GPT2LMHeadModel(their_config), config, from_gpt2, tied=True)


def test_gpt_neox_gives_their_logits_when_a_part_of_a_head_is_rotated() -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    options = {"use_parallel_residual": False, "hidden_act": "gelu", "rope_parameters": rope}
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**THEIR_SIZES, **options))
    config = BASE | {"position_embedding_type": "rope", "rotary_percent": 0.5}
    check_decoder(theirs, config, from_gpt_neox, tied=False)


def test_gemma2_gives_their_hidden_states_with_caps_and_alternating_windows() -> None:
    """From embeddings on to the last norm: Gemma scales embeddings and caps logits, which no field of ours asks for."""
    options = {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "sliding_window": 5, "head_dim": 12}
    theirs = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**THEIR_LLAMA, **options))
    theirs = randomised(theirs).eval()
    config = LLAMA | {
        "kv_channels": 12,
        "softmax_scale": 24**-0.5,
        "attn_logit_softcapping": 2.0,
        "window_size": (4, 0),
        "window_attn_skip_freq": 2,
        "activation_func": "gelu_tanh",
        "layernorm_zero_centered_gamma": True,
        "post_attention_layernorm": True,
        "post_mlp_layernorm": True,
    }
    ours = our_decoder(config, tied=True)
    ours.load_state_dict(from_llama(dict(theirs.named_parameters()), FOUR_NORMS))
    embedded = torch.randn(2, LENGTH, HIDDEN)
    expected = theirs.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    got = ours.final_layernorm(ours.run_layers(embedded, mask=AttentionMask(causal=True)))
    close(got, expected, 1e-5, "hidden states")
    direction = torch.randn_like(expected)
    for hidden in (expected, got):
        (hidden * direction).sum().backward()
    theirs.model.embed_tokens.weight.grad = torch.zeros_like(theirs.model.embed_tokens.weight)
    ours.embedding.word_embeddings.weight.grad = torch.zeros_like(ours.embedding.word_embeddings.weight)
    check_gradients(ours, from_llama(their_gradients(theirs), FOUR_NORMS))


@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_t5_attention_gives_their_outputs_with_relative_positions(is_decoder: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    sizes = {"d_model": HIDDEN, "d_kv": 8, "num_heads": HEADS, "relative_attention_num_buckets": 8}
    options = {"relative_attention_max_distance": 20, "dropout_rate": 0.0, "is_decoder": is_decoder}
    their_config = transformers.T5Config(**sizes, **options, attn_implementation="eager")
    theirs = randomised(T5Attention(their_config, has_relative_attention_bias=True, layer_idx=0)).eval()
    config = TransformerConfig(
        **(BASE | {"position_embedding_type": "relative", "softmax_scale": 1.0, "add_bias_linear": False})
    )
    ours = transom.build_module("self_attention", config, slot="self_attention", masks=("bias_grad",))
    positions = RelativePositionBias(HEADS, num_buckets=8, max_distance=20, bidirectional=not is_decoder)
    qkv = fused_qkv(theirs.q.weight, theirs.k.weight, theirs.v.weight, groups=HEADS)
    ours.load_state_dict({"linear_qkv.weight": qkv, "linear_proj.weight": theirs.o.weight})
    positions.load_state_dict({"relative_attention_bias.weight": theirs.relative_attention_bias.weight})

    x = torch.randn(2, LENGTH, HIDDEN)
    hidden = torch.full((LENGTH, LENGTH), torch.finfo(torch.float32).min).triu(1) if is_decoder else None
    expected, their_bias, _ = theirs(x, mask=None if hidden is None else hidden[None, None])
    bias = positions(LENGTH, LENGTH)
    got, _ = ours(x, mask=AttentionMask(causal=is_decoder, bias=bias))
    if not is_decoder:
        assert torch.equal(bias, their_bias)
    close(got, expected, 1e-5, "outputs")
    direction = torch.randn_like(expected)
    for output in (expected, got):
        (output * direction).sum().backward()
    qkv = fused_qkv(theirs.q.weight.grad, theirs.k.weight.grad, theirs.v.weight.grad, groups=HEADS)
    check_gradients(ours, {"linear_qkv.weight": qkv, "linear_proj.weight": theirs.o.weight.grad})
    check_gradients(positions, {"relative_attention_bias.weight": theirs.relative_attention_bias.weight.grad})
