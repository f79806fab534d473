"""The gated activation of an MLP by Liger Kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from torch import Tensor, nn

from transom_liger import kernels
from transom_liger.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.activation import Activation, ActivationBuilder, ActivationRequest

__all__ = ["LigerActivation"]

_OPERATORS = {"silu": "swiglu", "gelu_tanh": "geglu"}


@final
class LigerActivation(nn.Module):
    """``act(gate) * up`` in one kernel, which backward computes again instead of keeping ``act(gate)``.

    Args:
        config: ``activation_func``, silu or gelu_tanh, with ``gated_linear_unit``.

    Source: Shazeer 2020; Hsu et al. 2024 (Liger Kernel).

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(
        ...     num_layers=1, hidden_size=4, num_attention_heads=1, activation_func="silu", gated_linear_unit=True)
        >>> LigerActivation(config=config)
        LigerActivation(gated silu)
    """

    def __init__(self, *, config: TransformerConfig) -> None:
        super().__init__()
        self.function = config.activation_func
        self._gated = kernels.swiglu if config.activation_func == "silu" else _geglu

    @classmethod
    def supports(cls, request: ActivationRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        if not request.gated:
            yield "its kernels are of gated linear units, and gated_linear_unit is False"
        reason = missing(_OPERATORS.get(request.function, "swiglu"))
        if reason is not None:
            yield reason

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., 2f]`` to ``[..., f]``; the gate is the first half."""
        return self._gated(x)

    def extra_repr(self) -> str:
        """Say the function."""
        return f"gated {self.function}"


def _geglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return kernels.geglu(gate, up)


if TYPE_CHECKING:
    _builder: ActivationBuilder = LigerActivation

    def _is_an_activation(module: LigerActivation) -> Activation:
        return module
