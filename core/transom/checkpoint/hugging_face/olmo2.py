"""OLMo 2: norms at the ends of the branches alone, and over all queries, and all keys, of a token together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, fields, rules, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.checkpoint.layout_map import Rule
    from transom.specs.spec import ModelSpec

__all__ = ["OLMO2"]

_NORMS = {
    "post_attention_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}


def _read(settings: Settings) -> dict[str, Any]:
    return read_rope(settings)


def _write(spec: ModelSpec) -> dict[str, Any]:
    return write_rope(spec.config)


def _rules(spec: ModelSpec) -> list[Rule]:
    return rules(spec, _NORMS)


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    prefix="model.",
    fields=[field for field in fields(epsilon=1e-5) if field.theirs != "head_dim"],
    fixed={
        **FIXED,
        "pre_layernorm": False,
        "post_attention_layernorm": True,
        "post_mlp_layernorm": True,
        "qk_layernorm": True,
        "qk_layernorm_across_heads": True,
    },
    required={"attention_bias": (False, False, "biases here are in all linears of a layer or in none")},
    read=_read,
    write=_write,
    rules=_rules,
    ties=ties,
    ignored=IGNORED,
)
