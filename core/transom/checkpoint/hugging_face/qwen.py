"""Qwen 2 (and 2.5), whose queries, keys and values have biases; and Qwen 3, which norms queries and keys instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family, Field
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, fields, rules, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.windows import layer_types, read_windows, width

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["QWEN2", "QWEN3"]


def _read(settings: Settings) -> dict[str, Any]:
    size = settings.get("sliding_window", 4096) if settings.get("use_sliding_window", False) else None
    layers, full = settings.get("num_hidden_layers") or 0, settings.get("max_window_layers", 28)
    usual = ["full_attention" if size is None or i < full else "sliding_attention" for i in range(layers)]
    return read_rope(settings) | read_windows(settings, size, settings.get("layer_types", usual))


def _write(spec: ModelSpec) -> dict[str, Any]:
    config = spec.config
    size, types = width(config), layer_types(config)
    # Older versions know only a number of layers that are full before all others have the window.
    full = types.index("sliding_attention") if "sliding_attention" in types else config.num_layers
    windows = {"use_sliding_window": size is not None, "sliding_window": size, "max_window_layers": full}
    return write_rope(config) | windows | {"layer_types": types}


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    prefix="model.",
    fields=[field for field in fields(length=32768) if field.theirs != "head_dim"],
    fixed={**FIXED, "add_qkv_bias": True},
    read=_read,
    write=_write,
    rules=rules,
    ties=ties,
    ignored=IGNORED,
)

_QWEN3_FIELDS: Sequence[Field] = [
    Field("head_dim", "config.kv_channels", 128) if field.theirs == "head_dim" else field
    for field in fields(length=32768)
]

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    prefix="model.",
    fields=_QWEN3_FIELDS,
    fixed={**FIXED, "qk_layernorm": True},
    required={"attention_bias": (False, False, "biases here are in all linears of a layer or in none")},
    read=_read,
    write=_write,
    rules=rules,
    ties=ties,
    ignored=IGNORED,
)
