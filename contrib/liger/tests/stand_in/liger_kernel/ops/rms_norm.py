"""RMSNorm by plain torch."""

from __future__ import annotations

import torch

from liger_kernel.ops.by_formula import backward, forward


class LigerRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        assert casting_mode == "gemma"
        assert not in_place

        def formula(x, w):
            wide = x.float()
            return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * (w.float() + offset)).to(x.dtype)

        return forward(ctx, formula, X, W)

    @staticmethod
    def backward(ctx, dY):
        return *backward(ctx, dY), None, None, None, None, None
