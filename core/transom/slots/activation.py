"""The activation slot: the non-linearity of an MLP, gate included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ACTIVATION", "Activation", "ActivationBuilder", "ActivationRequest"]


@dataclass(frozen=True, kw_only=True)
class ActivationRequest(Request):
    """What an activation must serve: ``function`` is the config's name of it, ``gated`` halves the width."""

    function: str
    gated: bool


class Activation(Protocol):
    """An element-wise non-linearity, or its gated form over the two halves of the last dimension (gate first)."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., f]`` to ``[..., f]``, or ``[..., 2f]`` to ``[..., f]`` when gated."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """Run `forward`."""
        ...


class ActivationBuilder(Protocol):
    """Makes the activation that the config describes; used when ``config.use_te_activation_func``."""

    def __call__(self, *, config: TransformerConfig) -> Activation:
        """Make the module."""
        ...


ACTIVATION = Slot(
    name="activation",
    kind="kernel",
    api=(1, 0),
    summary="non-linearity of an MLP as a module of its own",
    request=ActivationRequest,
    builder=ActivationBuilder,
    interface=Activation,
    features={
        "gelu": "exact GELU, x·Φ(x)",
        "gelu_tanh": "GELU by its tanh approximation",
        "silu": "x·sigmoid(x)",
        "relu": "max(x, 0)",
        "squared_relu": "max(x, 0)²",
        "quick_gelu": "x·sigmoid(1.702·x)",
        "sigmoid": "1 / (1 + exp(-x))",
        "gated": "act(gate) · up over the two halves of the input",
        "clamp": "gate and up are clamped first",
        "glu_offset": "a constant is added to up",
    },
    default="torch_activation",
)
