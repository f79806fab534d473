"""Gemma 2: norms at both ends of a branch, windows in every other layer, caps on scores and logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family, Field
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, fields, rules, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.windows import layer_types, read_windows, width

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.checkpoint.layout_map import Rule
    from transom.specs.spec import ModelSpec

__all__ = ["GEMMA2"]

_NORMS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "pre_feedforward_layernorm": "pre_mlp_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}


def _read(settings: Settings) -> dict[str, Any]:
    layers = range(settings.get("num_hidden_layers") or 0)
    usual = ["full_attention" if i % 2 else "sliding_attention" for i in layers]
    found = {
        "softmax_scale": settings.get("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_multiplier": math.sqrt(settings.get("hidden_size") or 1),
    }
    # A cap that is null is none; where nothing is said, there is one.
    for name, usual_cap in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        cap = settings.values.get(name, usual_cap)
        found |= {} if cap is None else {name: cap}
    windows = read_windows(settings, settings.get("sliding_window", 4096), settings.get("layer_types", usual))
    return read_rope(settings) | found | windows


def _write(spec: ModelSpec) -> dict[str, Any]:
    config = spec.config
    scale = config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale
    caps = {name: getattr(config, name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    scalar = scale**-2
    scalar = round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-12) else scalar
    windows = {"sliding_window": width(config), "layer_types": layer_types(config)}
    return write_rope(config) | caps | windows | {"query_pre_attn_scalar": scalar}


def _rules(spec: ModelSpec) -> list[Rule]:
    return rules(spec, _NORMS)


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    prefix="model.",
    fields=[
        Field("head_dim", "config.kv_channels", 256) if field.theirs == "head_dim" else field
        for field in fields(length=8192, tied=True, act="hidden_activation", default_act="gelu_pytorch_tanh")
    ],
    fixed={
        **FIXED,
        "layernorm_zero_centered_gamma": True,
        "post_attention_layernorm": True,
        "post_mlp_layernorm": True,
    },
    required={
        "attention_bias": (False, False, "biases here are in all linears of a layer or in none"),
        "use_bidirectional_attention": (False, False, "a decoder is causal"),
    },
    read=_read,
    write=_write,
    rules=_rules,
    ties=ties,
    ignored=IGNORED,
)
