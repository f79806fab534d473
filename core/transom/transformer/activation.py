"""The non-linearities of MLPs, by name, plain and gated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.gated_silu import gated_silu

if TYPE_CHECKING:
    from transom.slots.activation import Activation, ActivationBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ACTIVATIONS", "TorchActivation", "activation_of", "gelu_tanh", "quick_gelu", "squared_relu"]


def gelu_tanh(x: Tensor) -> Tensor:
    """Approximate GELU by x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU by x·sigmoid(1.702 x) (Hendrycks and Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """Compute max(x, 0)² (So et al. 2021, Primer)."""
    return F.relu(x).square()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_tanh": gelu_tanh,
        "silu": F.silu,
        "relu": F.relu,
        "squared_relu": squared_relu,
        "quick_gelu": quick_gelu,
        "sigmoid": torch.sigmoid,
    }
)
"""Element-wise non-linearities by the names that `config.activation_func` may have."""


def activation_of(config: TransformerConfig) -> Callable[[Tensor], Tensor]:
    """Return the function that the config describes, gate included.

    Args:
        config: ``activation_func``, ``gated_linear_unit``, ``activation_func_clamp_value``, ``glu_linear_offset``,
            ``ffn_dropout``.

    Returns:
        a function of ``[..., f]``, or of ``[..., 2f]`` with the gate in the first half, to ``[..., f]``; a module where
        something is dropped, which knows when it is trained.

    Source: Shazeer 2020 for gated units; clamp c and offset o as ``act(min(gate, c)) (clamp(up, -c, c) + o)``.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1,
        ...                            activation_func="relu", gated_linear_unit=True)
        >>> activation_of(config)(torch.tensor([-1.0, 2.0, 3.0, 4.0]))
        tensor([0., 8.])
    """
    function = _function_of(config)
    return _Dropping(function, config.ffn_dropout) if config.ffn_dropout else function


def _function_of(config: TransformerConfig) -> Callable[[Tensor], Tensor]:
    act = ACTIVATIONS[config.activation_func]
    if not config.gated_linear_unit:
        return act
    clamp, offset = config.activation_func_clamp_value, config.glu_linear_offset
    if clamp is None and offset == 0.0 and config.activation_func == "silu":
        return gated_silu
    if clamp is None and offset == 0.0:
        return functools.partial(_gated, act)
    return functools.partial(_clamped_gated, act, torch.inf if clamp is None else clamp, offset)


@final
class _Dropping(nn.Module):
    """A function, and dropout of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor], p: float) -> None:
        super().__init__()
        self.function, self.p = function, p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.function(x), self.p, self.training)


@final
class TorchActivation(nn.Module):
    """The config's activation as a module.

    Args:
        config: as for `activation_of`.

    Example:
        >>> from transom import TransformerConfig
        >>> activation = TorchActivation(
        ...     config=TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1, activation_func="relu"))
        >>> activation(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def __init__(self, *, config: TransformerConfig) -> None:
        super().__init__()
        self._function = activation_of(config)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., f]`` to ``[..., f]``, or ``[..., 2f]`` to ``[..., f]`` when gated."""
        return self._function(x)


def _gated(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)  # [..., 2f] -> 2 x [..., f]
    return act(gate) * up


def _clamped_gated(act: Callable[[Tensor], Tensor], limit: float, offset: float, x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)  # [..., 2f] -> 2 x [..., f]
    return act(gate.clamp(max=limit)) * (up.clamp(-limit, limit) + offset)


if TYPE_CHECKING:
    _builder: ActivationBuilder = TorchActivation

    def _is_an_activation(module: TorchActivation) -> Activation:
        return module
