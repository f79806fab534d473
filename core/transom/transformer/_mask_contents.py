"""What an attention mask, or something that it rendered, is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transom.transformer.attention_mask import AttentionMask

__all__ = ["has_no_tensors", "needs_gradient"]


def has_no_tensors(mask: AttentionMask) -> bool:
    """Whether a mask tells of causality and a window alone. Every layer of every step asks: no set is made of it."""
    return (
        mask.query_segments is None
        and mask.prefix_lengths is None
        and mask.key_padding is None
        and mask.query_positions is None
        and mask.key_positions is None
        and mask.keep is None
        and mask.bias is None
        and mask.alibi_slopes is None
    )


def needs_gradient(value: Any) -> bool:
    """Whether a tensor, or one in a tuple, requires a gradient."""
    if isinstance(value, tuple):
        return any(map(needs_gradient, value))
    return isinstance(value, Tensor) and value.requires_grad
