"""The bias-dropout-add slot: the end of every residual branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["BIAS_DROPOUT_ADD", "BiasDropoutAdd", "BiasDropoutAddBuilder", "BiasDropoutAddRequest"]


@dataclass(frozen=True, kw_only=True)
class BiasDropoutAddRequest(Request):
    """What a bias-dropout-add must serve; ``dropout`` is the probability it will be called with."""

    dropout: float


class BiasDropoutAdd(Protocol):
    """``residual + dropout(x + bias)``, in the residual's dtype."""

    def forward(self, x: Tensor, bias: Tensor | None, residual: Tensor, p: float, training: bool, /) -> Tensor:
        """Map ``x [..., h]``, ``bias [h]`` and ``residual [..., h]`` to ``[..., h]``."""
        ...

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor, p: float, training: bool, /) -> Tensor:
        """Run `forward`."""
        ...


class BiasDropoutAddBuilder(Protocol):
    """Makes a bias-dropout-add."""

    def __call__(self, config: TransformerConfig) -> BiasDropoutAdd:
        """Make the module."""
        ...


BIAS_DROPOUT_ADD = Slot(
    name="bias_dropout_add",
    kind="kernel",
    api=(1, 0),
    summary="residual + dropout(x + bias)",
    request=BiasDropoutAddRequest,
    builder=BiasDropoutAddBuilder,
    interface=BiasDropoutAdd,
    features={"dropout": "drops elements in training"},
    settings={"dropout": "hidden_dropout: 0.0"},
    default="torch_bias_dropout_add",
)
