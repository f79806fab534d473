"""Ends of residual branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Right(nn.Module):
    def __init__(self, config):
        super().__init__()

    def forward(self, x, bias, residual, p, training, /):
        branch = x if bias is None else x + bias
        return residual + F.dropout(branch, p, training).to(residual.dtype)


class BiasTwice(Right):
    def forward(self, x, bias, residual, p, training, /):
        return super().forward(x if bias is None else x + bias, bias, residual, p, training)


class BiasAfterDropout(Right):
    def forward(self, x, bias, residual, p, training, /):
        output = super().forward(x, None, residual, p, training)
        return output if bias is None else output + bias.to(output.dtype)


class DropoutInEval(Right):
    def forward(self, x, bias, residual, p, training, /):
        return super().forward(x, bias, residual, p, True)


class DropsTheResidual(Right):
    def forward(self, x, bias, residual, p, training, /):
        return F.dropout(super().forward(x, bias, residual, 0.0, False), p, training)


class DropoutUnscaled(Right):
    def forward(self, x, bias, residual, p, training, /):
        dropped = super().forward(x, bias, torch.zeros_like(residual), p, training)
        return residual + (dropped * (1 - p) if training else dropped)


class NarrowsTheResidual(Right):
    def forward(self, x, bias, residual, p, training, /):
        return super().forward(x, bias, residual.to(x.dtype), p, training)


class AddsInPlace(Right):
    def forward(self, x, bias, residual, p, training, /):
        residual.data += super().forward(x, bias, torch.zeros_like(residual), p, training).data
        return residual * 1


class DropoutForgottenBackward(Right):
    def forward(self, x, bias, residual, p, training, /):
        plain = super().forward(x, bias, residual, 0.0, False)
        return plain + (super().forward(x, bias, residual, p, training) - plain).detach()
