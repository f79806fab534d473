"""Activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn
from transom.transformer.activation import ACTIVATIONS


class Right(nn.Module):
    def __init__(self, *, config):
        super().__init__()
        self.config = config

    def forward(self, x, /):
        if not self.config.gated_linear_unit:
            return self.act(x)
        gate, up = self.clamp(*x.chunk(2, dim=-1))
        return self.combine(self.act(gate), up)

    def act(self, x):
        return ACTIVATIONS[self.config.activation_func](x)

    def clamp(self, gate, up):
        c = self.config.activation_func_clamp_value
        return (gate, up) if c is None else (gate.clamp(max=c), up.clamp(-c, c))

    def combine(self, activated, up):
        return activated * (up + self.config.glu_linear_offset)


class TanhWhenFused(Right):
    """Takes bias_activation_fusion as leave to approximate."""

    def act(self, x):
        fused = self.config.bias_activation_fusion and self.config.activation_func == "gelu"
        return F.gelu(x, approximate="tanh") if fused else super().act(x)


class TanhForExact(Right):
    def act(self, x):
        return F.gelu(x, approximate="tanh") if self.config.activation_func == "gelu" else super().act(x)


class GateSecond(Right):
    def forward(self, x, /):
        return super().forward(x.roll(x.shape[-1] // 2, dims=-1) if self.config.gated_linear_unit else x)


class GateClampedBelow(Right):
    def clamp(self, gate, up):
        c = self.config.activation_func_clamp_value
        return (gate, up) if c is None else (gate.clamp(-c, c), up.clamp(-c, c))


class OffsetForgotten(Right):
    def combine(self, activated, up):
        return activated * up


class OffsetBeforeClamp(Right):
    def clamp(self, gate, up):
        return super().clamp(gate, up + self.config.glu_linear_offset)

    def combine(self, activated, up):
        return activated * up
