"""The gated unit of GELU by plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from liger_kernel.ops.by_formula import backward, forward


class LigerGELUMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        def formula(gate, up):
            return F.gelu(gate.float(), approximate="tanh").to(up.dtype) * up

        return forward(ctx, formula, a, b)

    @staticmethod
    def backward(ctx, dc):
        return tuple(backward(ctx, dc))
