"""The non-linearities of MLPs by Transformer Engine, plain and gated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from torch import Tensor

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.activation import Activation, ActivationBuilder, ActivationRequest

__all__ = ["NAMES", "TeActivation"]

NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gelu_tanh": ("GELU", "GEGLU"),
        "silu": ("SiLU", "SwiGLU"),
        "relu": ("ReLU", "ReGLU"),
        "squared_relu": ("SReLU", "SReGLU"),
        "quick_gelu": ("QGELU", "QGEGLU"),
    }
)
"""Transformer Engine's operations, plain and gated, by the config's names: its GELU is the tanh approximation."""


@final
class TeActivation(TeHost):
    """The config's activation in one kernel, the gate in the first half of the input.

    Args:
        config: ``activation_func``, one of `NAMES`, and ``gated_linear_unit``.
    """

    def __init__(self, *, config: TransformerConfig) -> None:
        super().__init__()
        name = NAMES[config.activation_func][config.gated_linear_unit]
        self.adopt(partial(engine.make_activation, name), {})

    @classmethod
    def supports(cls, request: ActivationRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return missing(request.context)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., f]`` to ``[..., f]``, or ``[..., 2f]`` to ``[..., f]`` when gated."""
        out: Tensor = self.inner(x)
        return out


if TYPE_CHECKING:
    _builder: ActivationBuilder = TeActivation

    def _is_an_activation(module: TeActivation) -> Activation:
        return module
