"""Mistral: Llama with a window over all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, fields, rules, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.windows import read_windows, width

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["MISTRAL"]


def _read(settings: Settings) -> dict[str, Any]:
    # Null means no window; where nothing is said, it is that of the first Mistral.
    size = settings.values.get("sliding_window", 4096)
    layers = ["sliding_attention"] * (settings.get("num_hidden_layers") or 0)
    return read_rope(settings) | ({} if size is None else read_windows(settings, size, layers))


def _write(spec: ModelSpec) -> dict[str, Any]:
    return write_rope(spec.config) | {"sliding_window": width(spec.config)}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    prefix="model.",
    fields=fields(length=131072),
    fixed=FIXED,
    read=_read,
    write=_write,
    rules=rules,
    ties=ties,
    ignored=IGNORED,
)
