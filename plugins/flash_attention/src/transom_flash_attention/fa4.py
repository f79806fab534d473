"""Every call into FlashAttention 4, the distribution ``flash-attn-4``, whose kernels are compiled when first called.

Its public functions are autograd functions that no operator can wrap, so that what they call is called here.
"""

from __future__ import annotations

from torch import Tensor

from transom_flash_attention.call import Call, Forward

__all__ = ["backward", "forward"]


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Forward:
    """Attend."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(
        query,
        key,
        value,
        cu_seqlens_q=call.starts,
        cu_seqlens_k=call.key_starts,
        seqused_k=call.used,
        page_table=call.table,
        max_seqlen_q=None if call.starts is None else call.longest,
        max_seqlen_k=None if call.starts is None else call.longest_keys,
        softmax_scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        window_size_left=_bound(call.left),
        window_size_right=_bound(call.right),
        return_lse=True,
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
    from flash_attn.cute.interface import _flash_attn_bwd

    query, key, value = inputs
    dq, dk, dv = grads
    _flash_attn_bwd(
        query,
        key,
        value,
        out=found.out,
        dout=grad,
        lse=found.lse,
        softmax_scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        window_size_left=_bound(call.left),
        window_size_right=_bound(call.right),
        cu_seqlens_q=call.starts,
        cu_seqlens_k=call.key_starts,
        max_seqlen_q=None if call.starts is None else call.longest,
        max_seqlen_k=None if call.starts is None else call.longest_keys,
        dq=dq,
        dk=dk,
        dv=dv,
    )


def _bound(distance: int) -> int | None:
    return None if distance < 0 else distance
