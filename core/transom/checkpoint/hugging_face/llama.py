"""Llama 2 and 3, and what its relatives share with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family, Field, activation
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Concat, Interleave

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["FIXED", "IGNORED", "LLAMA", "NORMS", "SIZES", "fields", "qkv", "rules", "ties"]

SIZES: Sequence[Field] = (
    Field("vocab_size", "vocab_size"),
    Field("hidden_size", "config.hidden_size"),
    Field("intermediate_size", "config.ffn_hidden_size"),
    Field("num_hidden_layers", "config.num_layers"),
    Field("num_attention_heads", "config.num_attention_heads"),
    Field("num_key_value_heads", "config.num_query_groups", None),
    Field("head_dim", "config.kv_channels", None),
    Field("attention_dropout", "config.attention_dropout", 0.0),
    Field("initializer_range", "config.init_method_std", 0.02),
)

FIXED: Mapping[str, Any] = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
}

NORMS: Mapping[str, str] = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
"""Norms of a layer, theirs and ours."""

IGNORED = ("rotary_emb.inv_freq",)
BIASES = "biases here are in all linears of a layer or in none"


def fields(
    *,
    length: int = 2048,
    epsilon: float = 1e-6,
    tied: bool = False,
    act: str = "hidden_act",
    default_act: str = "silu",
) -> list[Field]:
    """Give the fields of a relative of Llama; the arguments are what its config has where nothing is said."""
    return [
        *SIZES,
        Field("max_position_embeddings", "max_sequence_length", length),
        Field("rms_norm_eps", "config.layernorm_epsilon", epsilon),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", tied),
        activation(act, default_act),
    ]


def ties(spec: ModelSpec) -> list[tuple[str, ...]]:
    """Name the weights that are one when embeddings are shared."""
    return [("model.embed_tokens.weight", "lm_head.weight")] if spec.share_embeddings_and_output_weights else []


def qkv(config: TransformerConfig) -> Interleave:
    """Give the operation from separate projections to one, laid out by group."""
    groups = config.num_query_groups
    return Interleave(groups, (config.num_attention_heads // groups, 1, 1))


def rules(spec: ModelSpec, norms: Mapping[str, str] = NORMS) -> list[Rule]:
    """Give the layout of a relative of Llama's weights; ``norms`` are those of a layer."""
    config = spec.config
    there, here = "model.layers.{layer}", "layers.{layer}"
    found = [
        Rule("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        Rule("model.norm.weight", "final_layernorm.weight"),
        *(Rule(f"{there}.{name}.weight", f"{here}.{mine}.weight") for name, mine in norms.items()),
    ]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("lm_head.weight", "output_layer.weight"))
    if config.qk_layernorm:
        names = ((f"{there}.self_attn.{x}_norm.weight", f"{here}.self_attention.{x}_layernorm.weight") for x in "qk")
        found += [Rule(name, mine) for name, mine in names]
    if config.add_qkv_bias and not config.add_bias_linear:
        found.append(_qkv(there, here, "bias", config))
    for kind in ("weight", "bias") if config.add_bias_linear else ("weight",):
        found += [
            _qkv(there, here, kind, config),
            Rule(f"{there}.self_attn.o_proj.{kind}", f"{here}.self_attention.linear_proj.{kind}"),
            Rule([f"{there}.mlp.{x}_proj.{kind}" for x in ("gate", "up")], f"{here}.mlp.linear_fc1.{kind}", Concat(2)),
            Rule(f"{there}.mlp.down_proj.{kind}", f"{here}.mlp.linear_fc2.{kind}"),
        ]
    return found


def _qkv(there: str, here: str, kind: str, config: TransformerConfig) -> Rule:
    names = [f"{there}.self_attn.{x}_proj.{kind}" for x in "qkv"]
    return Rule(names, f"{here}.self_attention.linear_qkv.{kind}", qkv(config))


def _read(settings: Settings) -> dict[str, Any]:
    biases = settings.get("attention_bias", False), settings.get("mlp_bias", False)
    if biases[0] != biases[1]:
        settings.problems.append(f"attention_bias is {biases[0]} and mlp_bias is {biases[1]}: {BIASES}")
    return read_rope(settings) | {"add_bias_linear": biases[0]}


def _write(spec: ModelSpec) -> dict[str, Any]:
    has_bias = spec.config.add_bias_linear
    return write_rope(spec.config) | {"attention_bias": has_bias, "mlp_bias": has_bias}


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    fields=fields(),
    fixed=FIXED,
    read=_read,
    write=_write,
    rules=rules,
    ties=ties,
    ignored=IGNORED,
)
