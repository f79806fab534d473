"""What tensor-parallel ranks must know of parameters that do not rest as DTensors over them.

Whether gradients are parts of a sum that the ranks have yet to take, and whether a parameter is one rank's alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["mark_own_parameters", "mark_partial_gradients", "own_parameters", "partial_gradients"]


def mark_partial_gradients(module: object, names: tuple[str, ...] = ()) -> None:
    """Say that each tensor-parallel rank computes with a part of what these replicated parameters act on.

    Their gradients are then parts of a sum that nobody has taken yet: those of norms of heads, which are split over the
    ranks, and under sequence parallelism those of norms of tokens.

    Args:
        module: whose parameters they are.
        names: of some parameters of its own; empty = all that are in it.
    """
    module.__dict__["gradients_are_partial"] = names or True


def partial_gradients(module: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters below a module whose gradients must be summed over the tensor-parallel ranks, each once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> mark_partial_gradients(model[1])
        >>> [parameter is model[1].weight for parameter in partial_gradients(model)]
        [True, False]
    """
    yield from _marked(module, "gradients_are_partial")


def mark_own_parameters(module: object) -> None:
    """Say that no other tensor-parallel rank has these parameters: those of experts that are split over the ranks.

    What is computed of all parameters, a norm of gradients say, is then the sum over the ranks.

    Args:
        module: whose parameters they are.
    """
    module.__dict__["parameters_are_own"] = True


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters below a module that no other tensor-parallel rank has, each once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
        >>> mark_own_parameters(model[1])
        >>> [parameter is model[1].weight for parameter in own_parameters(model)]
        [True]
    """
    yield from _marked(module, "parameters_are_own")


def _marked(module: nn.Module, mark: str) -> Iterator[nn.Parameter]:
    found = ((part, part.__dict__.get(mark, False)) for part in module.modules())
    yield from {
        id(parameter): parameter
        for part, names in found
        if names
        for name, parameter in part.named_parameters()
        if names is True or name in names
    }.values()
