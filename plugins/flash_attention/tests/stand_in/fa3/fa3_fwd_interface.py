"""The interface of fa3-fwd, by plain matrices: forward only."""

from __future__ import annotations

import flash_math
import torch


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    _check(q, k, v)
    out, lse, _ = flash_math.forward(
        q, k, v, scale=softmax_scale, causal=causal, left=window_size[0], right=window_size[1], softcap=softcap
    )
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    _check(q, k, v)
    out, lse, _ = flash_math.packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, causal=causal, left=window_size[0],
        right=window_size[1], softcap=softcap,
    )  # fmt: skip
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    _check(q, k_cache, v_cache)
    out, lse, _ = flash_math.forward(
        q, k_cache, v_cache, scale=softmax_scale, causal=causal, left=-1, right=-1, softcap=softcap, used=cache_seqlens
    )
    return (out, lse, None, None) if return_softmax_lse else out


def _check(q, k, v):
    assert q.dtype is not torch.float16
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256
