"""The gated unit of SiLU by plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from liger_kernel.ops.by_formula import backward, forward


class LigerFusedGateUpSiLUMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, in_place=False):
        assert not in_place

        def formula(x):
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate.float()).to(up.dtype) * up

        return forward(ctx, formula, y)

    @staticmethod
    def backward(ctx, dc):
        (grad,) = backward(ctx, dc)
        return grad.flatten(0, -2), None  # as the kernel gives it, whatever came in
