"""Sliding windows as ``config.json`` describes them: one width, and which layers have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["layer_types", "read_windows", "width"]

_KINDS = {"sliding_attention": 1, "full_attention": 0}


def read_windows(settings: Settings, size: int | None, types: Sequence[str]) -> dict[str, Any]:
    """Read the windows of all layers.

    Args:
        settings: where everything that cannot be is noted.
        size: tokens that a token sees, itself among them; `None` = no layer has a window.
        types: what each layer is: ``sliding_attention`` or ``full_attention``.

    Returns:
        fields of a spec's config.
    """
    unknown = sorted({str(kind) for kind in types} - _KINDS.keys())
    if unknown or len(types) != settings.get("num_hidden_layers"):
        settings.problems.append(f"layer_types has {len(types)} entries, and of them unknown: {unknown}")
        return {}
    pattern = [_KINDS[kind] for kind in types]
    if size is None or not any(pattern):
        if any(pattern):
            settings.problems.append("layer_types has sliding_attention, and there is no sliding_window")
        return {}
    window = {"window_size": (size - 1, 0)}
    return window if all(pattern) else window | {"window_attn_skip_freq": pattern}


def width(config: TransformerConfig) -> int | None:
    """Give the tokens that a token sees in layers that have a window, itself among them."""
    if config.window_size is None or config.window_size[0] is None:
        return None
    return config.window_size[0] + 1


def layer_types(config: TransformerConfig) -> list[str]:
    """Say what each layer is."""
    layers = range(1, config.num_layers + 1)
    return ["full_attention" if config.window_of(number) is None else "sliding_attention" for number in layers]
