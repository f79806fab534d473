"""FlashAttention 4 by plain matrices; flash_attn around it is a namespace, as in the real one."""
