"""Attention by its definition, for masks that no FlashAttention kernel can be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transom import AttentionMask

__all__ = ["attend_densely"]

Window = tuple[int | None, int | None]


def attend_densely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: AttentionMask,
    window: Window | None,
    scale: float,
    softcap: float | None,
    sink: Tensor | None,
    dropout: float,
) -> Tensor:
    """Compute ``softmax(query · key * scale) · value`` over the keys that the mask shows, in float32.

    Args:
        query: ``[b, s, n, d]``.
        key: ``[b, t, g, d]``.
        value: ``[b, t, g, dv]``.
        mask: who may attend to whom.
        window: the layer's own.
        scale: multiplies the scores.
        softcap: of the scores.
        sink: ``[n]``: a logit for each head.
        dropout: of the weights.

    Returns:
        ``[b, s, n, dv]`` in the query's dtype; zeros where a query sees no key.

    Example:
        >>> x = torch.randn(1, 3, 2, 8)
        >>> attend_densely(x, x, x, mask=AttentionMask(causal=True), window=None, scale=1.0, softcap=None, sink=None,
        ...                dropout=0.0).shape
        torch.Size([1, 3, 2, 8])
    """
    (s, n), (t, g) = query.shape[1:3], key.shape[1:3]
    key, value = (x.float().repeat_interleave(n // g, dim=2) for x in (key, value))
    scores = torch.einsum("bsnd,btnd->bnst", query.float(), key) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    added = mask.as_additive(s, t, dtype=torch.float32, device=query.device, window=window)
    if added is not None:
        scores = scores + added
    logits = [scores] if sink is None else [scores, sink.view(1, n, 1, 1).expand(len(scores), n, s, 1)]
    # A row of nothing but -inf has no softmax: it is shown everything, and its output is struck out.
    blind = torch.zeros_like(scores, dtype=torch.bool) if added is None else added.isneginf().expand_as(scores)
    blind = blind.all(dim=-1, keepdim=True)
    weights = torch.cat(logits, dim=-1).masked_fill(blind, 0.0).softmax(dim=-1)[..., :t].masked_fill(blind, 0.0)
    return torch.einsum("bnst,btnd->bsnd", F.dropout(weights, dropout), value).to(query.dtype)
