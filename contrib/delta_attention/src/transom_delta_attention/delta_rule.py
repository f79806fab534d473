"""The delta rule over a sequence, chunk by chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["delta_rule"]


def delta_rule(query: Tensor, key: Tensor, value: Tensor, *, chunk: int = 64) -> Tensor:
    """Read a memory that each token corrects: ``S_t = S_{t-1} + k_t (v_t - S_{t-1}^T k_t)^T``, ``o_t = S_t^T q_t``.

    A strength β of each correction is said by keys and values that are both multiplied by its square root. A key and a
    value of zeros leave the memory as it is.

    Within a chunk the corrections ``u_t = v_t - S_{t-1}^T k_t`` solve a triangular system, so that the work is matrix
    products, and only whole chunks follow one after another.

    Args:
        query: ``[b, t, n, d]``.
        key: ``[b, t, g, d]``, of length at most 1; head i of the query reads memory ``i // (n // g)``.
        value: ``[b, t, g, dv]``.
        chunk: tokens of a chunk; it changes nothing but rounding, time and memory.

    Returns:
        ``[b, t, n, dv]``, in the dtype of the query; computed in float32 at least.

    Source: Schlag et al. 2021, equation 24; in chunks, Yang et al. 2024, section 3.2, here with the triangular system
    solved instead of its inverse written out.

    Example:
        >>> query, key, value = torch.randn(1, 5, 4, 8), torch.randn(1, 5, 2, 8) / 8, torch.randn(1, 5, 2, 6)
        >>> delta_rule(query, key, value, chunk=2).shape
        torch.Size([1, 5, 4, 6])
    """
    b, t, n, d = query.shape
    g, dtype = key.shape[2], query.dtype
    chunk = min(chunk, max(t, 1))
    query, key, value = (_chunks(x, chunk) for x in (query, key, value))  # [b, heads, t / c, c, width]
    query = query.reshape(b, g, n // g, -1, chunk, d).transpose(2, 3).flatten(3, 4)  # [b, g, t / c, n/g · c, d]
    system = (key @ key.mT).tril(-1) + torch.eye(chunk, dtype=key.dtype, device=key.device)
    # What the corrections are without the memory of the chunks before, and what of them each part of it takes off.
    both = torch.linalg.solve_triangular(system, torch.cat([value, key], dim=-1), upper=False, unitriangular=True)
    alone, taken = both.split_with_sizes([value.shape[-1], d], dim=-1)
    reads = (query @ key.mT).view(*query.shape[:3], n // g, chunk, chunk).tril().flatten(3, 4)
    memory = key.new_zeros(b, g, d, value.shape[-1])
    outputs = []
    for i in range(key.shape[2]):
        correction = alone[:, :, i] - taken[:, :, i] @ memory  # [b, g, c, dv]
        outputs.append(query[:, :, i] @ memory + reads[:, :, i] @ correction)
        memory = memory + key[:, :, i].mT @ correction
    output = torch.stack(outputs, dim=2).view(b, g, -1, n // g, chunk, value.shape[-1])
    return output.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, n, value.shape[-1])[:, :t].to(dtype)


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut ``[b, t, heads, width]`` into ``[b, heads, t / c, c, width]``, the last one filled up with zeros."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)
    wide = F.pad(wide, (0, 0, 0, -x.shape[1] % chunk))
    return wide.reshape(*wide.shape[:2], -1, chunk, x.shape[-1])
