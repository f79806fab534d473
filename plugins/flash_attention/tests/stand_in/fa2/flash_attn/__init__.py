"""FlashAttention 2 by plain matrices."""
