"""Modules by plain torch; parameters, states and what is returned are those of the real ones."""

from __future__ import annotations

import torch

from . import ops
from .attention import DotProductAttention
from .modules import LayerNorm, LayerNormLinear, LayerNormMLP, Linear, RMSNorm, active

__all__ = [
    "DotProductAttention",
    "LayerNorm",
    "LayerNormLinear",
    "LayerNormMLP",
    "Linear",
    "RMSNorm",
    "autocast",
    "ops",
    "torch",
]


class autocast:
    def __init__(self, enabled=True, recipe=None):
        self.recipe = recipe if enabled else None

    def __enter__(self):
        active.append(self.recipe)
        return self

    def __exit__(self, *_):
        active.pop()
