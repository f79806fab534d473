"""Rotary embedding by plain torch, which writes where the kernel writes."""

from __future__ import annotations

import torch


def turned(x, cos, sin):
    width = cos.shape[-1]
    wide = x[..., :width].float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]).to(x.dtype)


class LigerRopeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        ctx.save_for_backward(cos, sin)
        for x in (q, k):
            x[..., : cos.shape[-1]] = turned(x, cos, sin)
        return q.view_as(q), k.view_as(k)

    @staticmethod
    def backward(ctx, dq, dk):
        cos, sin = ctx.saved_tensors
        width = cos.shape[-1]
        grads = [torch.cat([turned(g, cos, -sin), g[..., width:]], dim=-1) for g in (dq, dk)]
        return *grads, None, None, None, None, None
