"""Implementations on disk for the kit to test."""

from __future__ import annotations

import pytest
from transom.registry.implementation import Implementation

NORM = '''
import torch
from torch import nn


class Fast(nn.Module):
    """RMSNorm."""

    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=getattr(torch, config.params_dtype)))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)

    def forward(self, x, /):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Slow(Fast):
    """RMSNorm that forgets eps."""

    def forward(self, x, /):
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.weight).to(x.dtype)
'''


@pytest.fixture
def norm(site, make_card):
    """Give a function that installs a distribution with two norms, and makes the implementation of one of them."""

    def install(name: str = "Fast", *, code: str = NORM, distribution: str = "acme-norm", **fields) -> Implementation:
        package = distribution.replace("-", "_")
        card = make_card("norm.Fast", "norm.Slow", **{"features": ["rmsnorm"], **fields})
        points = {"norm": {"Fast": "Fast", "Slow": "Slow"}}
        site.install(distribution, points, code=code, card=card)
        return Implementation("norm", name, distribution, "1.0", f"{package}.parts:{name}")

    return install
