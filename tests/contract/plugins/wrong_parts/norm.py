"""Norms."""

from __future__ import annotations

import torch
from torch import nn


class Right(nn.Module):
    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.eps, self.subtracts = self.choose_eps(config, eps), config.normalization == "LayerNorm"
        self.zero_centered = config.layernorm_zero_centered_gamma
        dtype = getattr(torch, config.params_dtype)
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype)) if self.subtracts else None
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.weight, 0.0 if self.zero_centered else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def choose_eps(self, config, eps):
        return eps

    def forward(self, x, /):
        wide = self.widen(x)
        wide = wide - wide.mean(dim=-1, keepdim=True) if self.subtracts else wide
        normed = (wide / self.spread(wide)) * self.gamma().to(wide.dtype)
        return (normed if self.bias is None else normed + self.bias).to(x.dtype)

    def widen(self, x):
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def spread(self, x):
        return (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def gamma(self):
        return self.weight + 1 if self.zero_centered else self.weight


class WithoutEps(Right):
    def spread(self, x):
        return x.square().mean(dim=-1, keepdim=True).sqrt()


class EpsOutsideTheRoot(Right):
    def spread(self, x):
        return x.square().mean(dim=-1, keepdim=True).sqrt() + self.eps


class EpsOfTheConfig(Right):
    def choose_eps(self, config, eps):
        return config.layernorm_epsilon


class UnbiasedVariance(Right):
    def spread(self, x):
        return (x.square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1) + self.eps).sqrt()


class NarrowStatistics(Right):
    def widen(self, x):
        return x


class ZeroCenteredForgotten(Right):
    def gamma(self):
        return self.weight


class StartsAtZero(Right):
    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class WideResult(Right):
    def forward(self, x, /):
        return super().forward(x).float()


class NoReset(Right):
    reset_parameters = None

    def __init__(self, config, hidden_size, eps):
        self.reset_parameters = lambda: None
        super().__init__(config, hidden_size, eps)
        del self.reset_parameters


class OtherNames(Right):
    def __init__(self, config, hidden_size, eps):
        super().__init__(config, hidden_size, eps)
        self.scale = nn.Parameter(self.weight.detach().clone())
        del self.weight

    def gamma(self):
        return self.scale
