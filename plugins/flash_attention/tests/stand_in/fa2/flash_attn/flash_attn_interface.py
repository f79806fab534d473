"""The interface of flash-attn, by plain matrices."""

from __future__ import annotations

import flash_math
import torch

asked = []
"""Whether each backward pass was to be deterministic."""


def _flash_attn_forward(
    q,
    k,
    v,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    return_softmax,
):
    _check(q, k, v, dropout_p, softcap, alibi_slopes)
    out, lse, state = flash_math.forward(
        q, k, v, scale=softmax_scale, causal=causal, left=window_size_left, right=window_size_right, softcap=softcap,
        slopes=alibi_slopes, dropout=dropout_p, empty=torch.inf,
    )  # fmt: skip
    return out, lse, torch.empty(0), state


def _flash_attn_varlen_forward(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left=-1,
    window_size_right=-1,
    softcap=0.0,
    alibi_slopes=None,
    return_softmax=False,
    block_table=None,
    leftpad_k=None,
    seqused_k=None,
    zero_tensors=False,
):
    _check(q, k, v, dropout_p, softcap, alibi_slopes)
    _check_lengths(cu_seqlens_q, max_seqlen_q)
    _check_lengths(cu_seqlens_k, max_seqlen_k)
    out, lse, state = flash_math.packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, causal=causal, left=window_size_left,
        right=window_size_right, softcap=softcap, slopes=alibi_slopes, dropout=dropout_p, empty=torch.inf,
    )  # fmt: skip
    return out, lse, torch.empty(0), state


def _flash_attn_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):
    asked.append(deterministic)
    flash_math.backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, seed=int(rng_state[0]), scale=softmax_scale, causal=causal,
        left=window_size_left, right=window_size_right, softcap=softcap, slopes=alibi_slopes, dropout=dropout_p,
    )  # fmt: skip


def _flash_attn_varlen_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
    zero_tensors=False,
):
    asked.append(deterministic)
    flash_math.packed_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, seed=int(rng_state[0]),
        scale=softmax_scale, causal=causal, left=window_size_left, right=window_size_right, softcap=softcap,
        slopes=alibi_slopes, dropout=dropout_p,
    )  # fmt: skip


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    _check(q, k_cache, v_cache, 0.0, softcap, alibi_slopes)
    assert cache_seqlens.dtype is torch.int32
    assert cache_seqlens.is_contiguous()
    if block_table is not None:
        assert block_table.dtype is torch.int32
        assert k_cache.shape[1] % 256 == 0
        k_cache, v_cache = (pool[block_table.long()].flatten(1, 2) for pool in (k_cache, v_cache))
    out, lse, _ = flash_math.forward(
        q, k_cache, v_cache, scale=softmax_scale, causal=causal, left=window_size[0], right=window_size[1],
        softcap=softcap, slopes=alibi_slopes, used=cache_seqlens, empty=torch.inf,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


def _check(q, k, v, dropout, softcap, slopes):
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256
    assert q.shape[-1] % 8 == 0
    assert q.dtype == k.dtype == v.dtype
    assert not (dropout and softcap), "softcapping does not support dropout"
    assert slopes is None or slopes.dtype is torch.float32


def _check_lengths(cumulative, longest):
    assert cumulative.dtype is torch.int32
    assert int(cumulative.diff().max()) <= longest
