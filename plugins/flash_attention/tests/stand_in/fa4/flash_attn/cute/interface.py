"""The interface of flash-attn-4, by plain matrices."""

from __future__ import annotations

import flash_math
import torch


def _flash_attn_fwd(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    seqused_q=None,
    seqused_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    min_seqlen_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    softcap=None,
    window_size_left=None,
    window_size_right=None,
    learnable_sink=None,
    tile_mn=None,
    mma_pv_is_rs=None,
    intra_wg_overlap=None,
    num_threads=384,
    num_splits=1,
    pack_gqa=None,
    _arch=None,
    score_mod=None,
    mask_mod=None,
    block_sparse_tensors=None,
    return_lse=False,
    out=None,
    lse=None,
    aux_tensors=None,
    aux_scalars=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    gather_kv_indices=None,
    scheduler_metadata=None,
    seqlen_k_per_split=None,
    disable_scheduler_metadata=False,
    gather_bwd_recompute_p=False,
):
    assert all(8 <= x.shape[-1] <= 256 and x.shape[-1] % 8 == 0 for x in (q, v))
    told = {
        "scale": softmax_scale,
        "causal": causal,
        "left": -1 if window_size_left is None else window_size_left,
        "right": -1 if window_size_right is None else window_size_right,
        "softcap": softcap,
    }
    if page_table is not None:
        assert page_table.dtype is torch.int32
        assert k.shape[1] == 128
        k, v = (pool[page_table.long()].flatten(1, 2) for pool in (k, v))
    if cu_seqlens_q is None:
        out, lse, _ = flash_math.forward(q, k, v, used=seqused_k, **told)
    else:
        assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
        out, lse, _ = flash_math.packed(q, k, v, cu_seqlens_q, cu_seqlens_k, **told)
    return out, lse if return_lse else None, None, None, None


def _flash_attn_bwd(
    q,
    k,
    v,
    out,
    dout,
    lse,
    softmax_scale=None,
    causal=False,
    softcap=0.0,
    window_size_left=None,
    window_size_right=None,
    m_block_size=64,
    n_block_size=128,
    num_threads=256,
    pack_gqa=False,
    num_stages_Q=2,
    num_stages_dO=2,
    SdP_swapAB=False,
    dKV_swapAB=False,
    dQ_swapAB=False,
    AtomLayoutMSdP=2,
    AtomLayoutNdKV=2,
    AtomLayoutMdQ=2,
    V_in_regs=False,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    seqused_q=None,
    seqused_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    deterministic=False,
    dq=None,
    dk=None,
    dv=None,
    score_mod=None,
    score_mod_bwd=None,
    mask_mod=None,
    aux_tensors=None,
    aux_scalars=None,
    block_sparse_tensors=None,
    dlse=None,
    learnable_sink=None,
):
    assert q.shape[-1] == v.shape[-1] or q.shape[-2] == k.shape[-2], "grouped heads of two sizes"
    told = {
        "scale": softmax_scale,
        "causal": causal,
        "left": -1 if window_size_left is None else window_size_left,
        "right": -1 if window_size_right is None else window_size_right,
        "softcap": softcap,
    }
    if cu_seqlens_q is None:
        flash_math.backward(dout, q, k, v, out, lse, dq, dk, dv, **told)
    else:
        flash_math.packed_backward(dout, q, k, v, out, lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, **told)
    assert not any(torch.isnan(x).any() for x in (dq, dk, dv))
    return dq, dk, dv
