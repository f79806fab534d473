"""Phi-3: Llama with its projections fused: queries, keys and values one after another, and gate and up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, NORMS, fields, qkv, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.windows import read_windows, width
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Split

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["PHI3"]


_LONG = ("longrope", "su", "yarn")
"""What the one scaling was called over time."""


def _read(settings: Settings) -> dict[str, Any]:
    size = settings.get("sliding_window")
    layers = ["sliding_attention"] * (settings.get("num_hidden_layers") or 0)
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind in _LONG:
        plain = {name: value for name, value in scaling.items() if name in ("rope_theta", "partial_rotary_factor")}
        rope = read_rope(settings.replace(rope_scaling=None, rope_parameters=plain), is_partial=True)
        rope["rope_scaling"] = _read_long(settings, scaling)
    else:
        settings.must_be("rope_type", "default", kind, "there are default and longrope")
        rope = read_rope(settings, is_partial=True)
    return rope | ({} if size is None else read_windows(settings, size, layers))


def _read_long(settings: Settings, scaling: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a scaling whose divisors depend on the length of the text: up to the trained length they are the short ones.

    Beyond it, the first tokens would have to be computed anew when the text outgrows that length.
    """
    most = settings.get("max_position_embeddings", 4096)
    trained = settings.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings", most))
    if (settings.max_sequence_length or most) > trained:
        settings.problems.append(
            f"rope_type is longrope: other frequencies hold in texts longer than {trained} tokens; "
            f"give max_sequence_length={trained} for those that are not"
        )
    factor = scaling.get("factor") or most / trained
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return {
        "type": "longrope",
        "frequency_divisors": scaling.get("short_factor"),
        "attention_factor": scaling.get("attention_factor") or usual,
    }


def _write(spec: ModelSpec) -> dict[str, Any]:
    scaling, window = spec.config.rope_scaling, {"sliding_window": width(spec.config)}
    settings = write_rope(spec.config) | window | {"original_max_position_embeddings": spec.max_sequence_length}
    if scaling is None or scaling.type != "longrope":
        return settings
    divisors = list(scaling.frequency_divisors or ())
    factor = 1.0 if scaling.attention_factor is None else scaling.attention_factor
    long = {"rope_type": "longrope", "type": "longrope", "short_factor": divisors, "long_factor": divisors}
    return settings | {"rope_scaling": long | {"attention_factor": factor}}


def _rules(spec: ModelSpec) -> list[Rule]:
    config = spec.config
    heads, groups, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
    there, here = "model.layers.{layer}", "layers.{layer}"
    found = [
        Rule("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        Rule("model.norm.weight", "final_layernorm.weight"),
        *(Rule(f"{there}.{name}.weight", f"{here}.{mine}.weight") for name, mine in NORMS.items()),
        Rule(
            f"{there}.self_attn.qkv_proj.weight",
            f"{here}.self_attention.linear_qkv.weight",
            Split((heads * d, groups * d, groups * d)),
            qkv(config),
        ),
        Rule(f"{there}.self_attn.o_proj.weight", f"{here}.self_attention.linear_proj.weight"),
        Rule(f"{there}.mlp.gate_up_proj.weight", f"{here}.mlp.linear_fc1.weight"),
        Rule(f"{there}.mlp.down_proj.weight", f"{here}.mlp.linear_fc2.weight"),
    ]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("lm_head.weight", "output_layer.weight"))
    return found


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    prefix="model.",
    fields=[field for field in fields(length=4096, epsilon=1e-5) if field.theirs != "head_dim"],
    fixed=FIXED,
    required={"resid_pdrop": (0.0, 0.0, "dropout here is of the embeddings too")},
    read=_read,
    write=_write,
    rules=_rules,
    ties=ties,
    ignored=IGNORED,
)
