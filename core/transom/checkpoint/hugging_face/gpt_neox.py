"""GPT-NeoX and Pythia: attention and MLP side by side, a part of each head rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family, Field, activation
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.layout_map import Rule

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["GPT_NEOX"]

_ROPE = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_SHARE = 0.25

_PLACES = {
    "input_layernorm": "input_layernorm",
    "attention.query_key_value": "self_attention.linear_qkv",  # by head: query, key, value, as here
    "attention.dense": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}


def _read(settings: Settings) -> dict[str, Any]:
    return read_rope(settings, old_names=_ROPE, share=_SHARE, is_partial=True)


def _write(spec: ModelSpec) -> dict[str, Any]:
    return write_rope(spec.config, old_names=_ROPE, share=_SHARE)


def _rules(spec: ModelSpec) -> list[Rule]:
    there, here = "gpt_neox.layers.{layer}", "layers.{layer}"
    found = [Rule("gpt_neox.embed_in.weight", "embedding.word_embeddings.weight")]
    for kind in ("weight", "bias"):
        found.append(Rule(f"gpt_neox.final_layer_norm.{kind}", f"final_layernorm.{kind}"))
        found += [Rule(f"{there}.{name}.{kind}", f"{here}.{mine}.{kind}") for name, mine in _PLACES.items()]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("embed_out.weight", "output_layer.weight"))
    return found


def _ties(spec: ModelSpec) -> list[tuple[str, ...]]:
    output = ("embed_out.weight", "lm_head.weight")  # files have the one name, the class the other
    return [("gpt_neox.embed_in.weight", *output) if spec.share_embeddings_and_output_weights else output]


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fields=[
        Field("vocab_size", "vocab_size"),
        Field("max_position_embeddings", "max_sequence_length", 2048),
        Field("hidden_size", "config.hidden_size"),
        Field("num_hidden_layers", "config.num_layers"),
        Field("num_attention_heads", "config.num_attention_heads"),
        Field("intermediate_size", "config.ffn_hidden_size"),
        Field("hidden_dropout", "config.hidden_dropout", 0.0),
        Field("attention_dropout", "config.attention_dropout", 0.0),
        Field("layer_norm_eps", "config.layernorm_epsilon", 1e-5),
        Field("initializer_range", "config.init_method_std", 0.02),
        Field("use_parallel_residual", "config.parallel_residual", True),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False),
        activation("hidden_act", "gelu"),
    ],
    fixed={"normalization": "LayerNorm", "add_bias_linear": True},
    required={"attention_bias": (True, True, "biases here are in all linears of a layer or in none")},
    read=_read,
    write=_write,
    rules=_rules,
    ties=_ties,
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
