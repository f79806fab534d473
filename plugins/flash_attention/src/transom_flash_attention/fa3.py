"""Every call into FlashAttention 3, the distribution ``fa3-fwd``, which has the forward pass alone."""

from __future__ import annotations

from torch import Tensor

from transom_flash_attention.call import Call, Forward

__all__ = ["forward"]


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    """Attend."""
    if call.used is not None:
        return _over_used(query, key, value, call)
    if call.starts is not None:
        return _packed(query, key, value, call)
    from fa3_fwd_interface import flash_attn_func

    out, lse = flash_attn_func(
        query,
        key,
        value,
        softmax_scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        return_attn_probs=True,
    )
    return Forward(out, lse)


def _packed(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    from fa3_fwd_interface import flash_attn_varlen_func

    out, lse = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=call.starts,
        cu_seqlens_k=call.key_starts,
        max_seqlen_q=call.longest,
        max_seqlen_k=call.longest_keys,
        softmax_scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        return_attn_probs=True,
    )
    return Forward(out, lse)


def _over_used(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    from fa3_fwd_interface import flash_attn_with_kvcache

    out, lse, *_ = flash_attn_with_kvcache(
        query,
        k_cache=key,
        v_cache=value,
        cache_seqlens=call.used,
        softmax_scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        return_softmax_lse=True,
    )
    return Forward(out, lse)
