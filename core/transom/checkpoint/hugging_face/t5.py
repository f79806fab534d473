"""T5, its versions 1.0 and 1.1 (Flan-T5 among them), and mT5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import ACTIVATIONS, Family, Field
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Concat, Interleave

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["MT5", "T5"]

_GATED = "gated-"


def _read(settings: Settings) -> dict[str, Any]:
    projection = str(settings.get("feed_forward_proj", "relu"))
    function = projection.removeprefix(_GATED)
    # What is called gated-gelu there is computed by the approximation with tanh.
    function = "gelu_new" if projection == "gated-gelu" else function
    if function not in ACTIVATIONS:
        settings.problems.append(f"feed_forward_proj is {projection!r}; there are {', '.join(ACTIVATIONS)}")
    return {
        "gated_linear_unit": projection.startswith(_GATED),
        "activation_func": ACTIVATIONS.get(function, "relu"),
        "attention_dropout": settings.get("dropout_rate", 0.1),
        "ffn_dropout": settings.get("dropout_rate", 0.1),
        "num_layers": settings.get("num_decoder_layers", settings.get("num_layers")),
    }


def _around(settings: Settings, config: dict[str, Any], *, scales: bool) -> dict[str, Any]:
    return {
        "model": "t5",
        "masks": ["padding"],
        "encoder_config": config | {"num_layers": settings.get("num_layers")},
        "options": {"model": {"scale_logits": scales, "tied_bias": False, "output_dropout": True}},
    }


def _around_t5(settings: Settings, config: dict[str, Any]) -> dict[str, Any]:
    # Version 1.1 said that it does not share its embeddings, and that alone told it from 1.0, which scales.
    shared = settings.get("tie_word_embeddings", True)
    return _around(settings, config, scales=settings.get("scale_decoder_outputs", shared))


def _around_mt5(settings: Settings, config: dict[str, Any]) -> dict[str, Any]:
    return _around(settings, config, scales=False)


def _write(spec: ModelSpec) -> dict[str, Any]:
    config, encoder = spec.config, spec.encoder_config or spec.config
    function = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation_func)
    if config.gated_linear_unit:
        function = _GATED + ("gelu" if config.activation_func == "gelu_tanh" else function)
    return {
        "is_encoder_decoder": True,
        "feed_forward_proj": function,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": config.num_layers,
    }


def _write_t5(spec: ModelSpec) -> dict[str, Any]:
    scales = spec.options.get("model", {}).get("scale_logits", False)
    return _write(spec) | {"tie_word_embeddings": scales, "scale_decoder_outputs": scales}


def _write_mt5(spec: ModelSpec) -> dict[str, Any]:
    return _write(spec) | {"tie_word_embeddings": spec.share_embeddings_and_output_weights}


def _rules(spec: ModelSpec) -> list[Rule]:
    found = [Rule("shared.weight", "embedding.word_embeddings.weight")]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("lm_head.weight", "lm_head.output_layer.weight"))
    for side in ("encoder", "decoder"):
        there = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += [
            Rule(there, f"{side}_relative_pos_emb.relative_attention_bias.weight"),
            Rule(f"{side}.final_layer_norm.weight", f"{side}.final_layernorm.weight"),
            *_layer(spec.config, f"{side}.block.{{{side}}}.layer", f"{side}.layers.{{{side}}}", side),
        ]
    return found


def _layer(config: TransformerConfig, there: str, here: str, side: str) -> list[Rule]:
    """Give the layout of a layer's weights; a decoder's has cross-attention between its two other parts."""
    heads, mlp = config.num_attention_heads, 2 if side == "decoder" else 1
    inner = ("wi_0", "wi_1") if config.gated_linear_unit else ("wi",)
    own, cross = f"{there}.0.SelfAttention", f"{there}.1.EncDecAttention"
    found = [
        Rule(f"{there}.0.layer_norm.weight", f"{here}.input_layernorm.weight"),
        Rule(
            [f"{own}.{x}.weight" for x in "qkv"],
            f"{here}.self_attention.linear_qkv.weight",
            Interleave(heads, (1, 1, 1)),
        ),
        Rule(f"{own}.o.weight", f"{here}.self_attention.linear_proj.weight"),
        Rule(f"{there}.{mlp}.layer_norm.weight", f"{here}.pre_mlp_layernorm.weight"),
        Rule(
            [f"{there}.{mlp}.DenseReluDense.{name}.weight" for name in inner],
            f"{here}.mlp.linear_fc1.weight",
            Concat(len(inner)),
        ),
        Rule(f"{there}.{mlp}.DenseReluDense.wo.weight", f"{here}.mlp.linear_fc2.weight"),
    ]
    if side == "encoder":
        return found
    return [
        *found,
        Rule(f"{there}.1.layer_norm.weight", f"{here}.pre_cross_attn_layernorm.weight"),
        Rule(f"{cross}.q.weight", f"{here}.cross_attention.linear_q.weight"),
        Rule(
            [f"{cross}.{x}.weight" for x in "kv"],
            f"{here}.cross_attention.linear_kv.weight",
            Interleave(heads, (1, 1)),
        ),
        Rule(f"{cross}.o.weight", f"{here}.cross_attention.linear_proj.weight"),
    ]


def _ties(spec: ModelSpec) -> list[tuple[str, ...]]:
    embeddings = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return [(*embeddings, "lm_head.weight") if spec.share_embeddings_and_output_weights else embeddings]


def _numbers(spec: ModelSpec) -> dict[str, int]:
    return {"encoder": (spec.encoder_config or spec.config).num_layers, "decoder": spec.config.num_layers}


_COMMON: Mapping[str, Any] = {
    "prefix": "",
    "model": "t5",
    "fields": [
        Field("vocab_size", "vocab_size"),
        Field("n_positions", "max_sequence_length", 512),
        Field("d_model", "config.hidden_size"),
        Field("d_kv", "config.kv_channels", 64),
        Field("d_ff", "config.ffn_hidden_size"),
        Field("num_heads", "config.num_attention_heads"),
        Field("relative_attention_num_buckets", "config.relative_attention_num_buckets", 32),
        Field("relative_attention_max_distance", "config.relative_attention_max_distance", 128),
        Field("dropout_rate", "config.hidden_dropout", 0.1),
        Field("layer_norm_epsilon", "config.layernorm_epsilon", 1e-6),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True),
    ],
    "fixed": {
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "softmax_scale": 1.0,
        "position_embedding_type": "relative",
    },
    "read": _read,
    "rules": _rules,
    "numbers": _numbers,
    "ties": _ties,
    "always_ties": True,
    "ignored": ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
}

T5 = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    around=_around_t5,
    write=_write_t5,
    **_COMMON,
)
MT5 = Family(
    model_type="mt5",
    architecture="MT5ForConditionalGeneration",
    around=_around_mt5,
    write=_write_mt5,
    **_COMMON,
)
