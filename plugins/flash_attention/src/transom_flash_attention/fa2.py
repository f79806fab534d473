"""Every call into FlashAttention 2, the distribution ``flash-attn``."""

from __future__ import annotations

from torch import Tensor

from transom_flash_attention.call import Call, Forward

__all__ = ["backward", "forward"]


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    """Attend."""
    if call.used is not None:
        return _over_used(query, key, value, call)
    if call.starts is not None:
        return _packed(query, key, value, call)
    from flash_attn.flash_attn_interface import _flash_attn_forward

    out, lse, _, random_state = _flash_attn_forward(
        query,
        key,
        value,
        dropout_p=call.dropout,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size_left=call.left,
        window_size_right=call.right,
        softcap=call.softcap,
        alibi_slopes=call.slopes,
        return_softmax=False,
    )
    return Forward(out, lse, random_state)


def _packed(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    out, lse, _, random_state = _flash_attn_varlen_forward(
        query,
        key,
        value,
        cu_seqlens_q=call.starts,
        cu_seqlens_k=call.key_starts,
        max_seqlen_q=call.longest,
        max_seqlen_k=call.longest_keys,
        dropout_p=call.dropout,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size_left=call.left,
        window_size_right=call.right,
        softcap=call.softcap,
        alibi_slopes=call.slopes,
        return_softmax=False,
    )
    return Forward(out, lse, random_state)


def _over_used(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    from flash_attn.flash_attn_interface import flash_attn_with_kvcache

    out, lse = flash_attn_with_kvcache(
        query,
        k_cache=key,
        v_cache=value,
        cache_seqlens=call.used,
        block_table=call.table,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size=(call.left, call.right),
        softcap=call.softcap,
        alibi_slopes=call.slopes,
        return_softmax_lse=True,
    )
    return Forward(out, lse)


def backward(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    found: Forward,
    grads: tuple[Tensor, Tensor, Tensor],
    call: Call,
) -> None:
    """Write the gradients of queries, keys and values into ``grads``."""
    if call.starts is not None:
        return _backward_packed(grad, inputs, found, grads, call)
    from flash_attn.flash_attn_interface import _flash_attn_backward

    query, key, value = inputs
    dq, dk, dv = grads
    _flash_attn_backward(
        grad,
        query,
        key,
        value,
        out=found.out,
        softmax_lse=found.lse,
        dq=dq,
        dk=dk,
        dv=dv,
        dropout_p=call.dropout,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size_left=call.left,
        window_size_right=call.right,
        softcap=call.softcap,
        alibi_slopes=call.slopes,
        deterministic=call.deterministic,
        rng_state=found.random_state,
    )
    return None


def _backward_packed(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    found: Forward,
    grads: tuple[Tensor, Tensor, Tensor],
    call: Call,
) -> None:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    query, key, value = inputs
    dq, dk, dv = grads
    _flash_attn_varlen_backward(
        grad,
        query,
        key,
        value,
        out=found.out,
        softmax_lse=found.lse,
        dq=dq,
        dk=dk,
        dv=dv,
        cu_seqlens_q=call.starts,
        cu_seqlens_k=call.key_starts,
        max_seqlen_q=call.longest,
        max_seqlen_k=call.longest_keys,
        dropout_p=call.dropout,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size_left=call.left,
        window_size_right=call.right,
        softcap=call.softcap,
        alibi_slopes=call.slopes,
        deterministic=call.deterministic,
        rng_state=found.random_state,
    )
