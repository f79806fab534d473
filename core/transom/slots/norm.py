"""The norm slot: LayerNorm or RMSNorm, as the config says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["NORM", "Norm", "NormBuilder", "NormRequest"]


@dataclass(frozen=True, kw_only=True)
class NormRequest(Request):
    """What a norm must serve: the kind is among ``features``; it runs over the last dimension, ``hidden_size`` wide."""

    hidden_size: int
    eps: float


class Norm(Protocol):
    """Normalises the last dimension, with statistics in float32; the result has the input's dtype."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """Run `forward`."""
        ...


class NormBuilder(Protocol):
    """Makes the norm that ``config.normalization`` names (and ``config.layernorm_zero_centered_gamma`` shapes)."""

    def __call__(self, config: TransformerConfig, hidden_size: int, eps: float) -> Norm:
        """Make the module."""
        ...


NORM = Slot(
    name="norm",
    kind="kernel",
    api=(1, 0),
    summary="LayerNorm or RMSNorm over the last dimension",
    request=NormRequest,
    builder=NormBuilder,
    interface=Norm,
    features={
        "layernorm": "LayerNorm (Ba et al. 2016): subtract the mean, divide by the standard deviation",
        "rmsnorm": "RMSNorm (Zhang and Sennrich 2019): divide by the root mean square",
        "zero_centered_gamma": "the scale is stored minus one",
    },
    default="torch_norm",
)
