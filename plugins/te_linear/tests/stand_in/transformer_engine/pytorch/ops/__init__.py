"""Non-linearities: GELU is its tanh approximation, and the first half of a gated one's input is the gate."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

_PLAIN = {
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "srelu": lambda x: F.relu(x).square(),
    "qgelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_GATED = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu", "sreglu": "srelu", "qgeglu": "qgelu"}


def _gate(act, x):
    gate, up = x.chunk(2, dim=-1)
    return act(gate) * up


FUNCTIONS = _PLAIN | {name: functools.partial(_gate, _PLAIN[plain]) for name, plain in _GATED.items()}


class _Operation(nn.Module):
    name = ""

    def __init__(self, *, cache_quantized_input=False):
        super().__init__()

    def forward(self, x):
        return FUNCTIONS[self.name](x)


class GELU(_Operation):
    name = "gelu"


class GEGLU(_Operation):
    name = "geglu"


class SiLU(_Operation):
    name = "silu"


class SwiGLU(_Operation):
    name = "swiglu"


class ReLU(_Operation):
    name = "relu"


class ReGLU(_Operation):
    name = "reglu"


class SReLU(_Operation):
    name = "srelu"


class SReGLU(_Operation):
    name = "sreglu"


class QGELU(_Operation):
    name = "qgelu"


class QGEGLU(_Operation):
    name = "qgeglu"
