"""Which parameters' gradients are parts of a sum that tensor-parallel ranks have yet to take."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["mark_partial_gradients", "partial_gradients"]


def mark_partial_gradients(module: object) -> None:
    """Say that each tensor-parallel rank computes with a part of what these replicated parameters act on.

    Their gradients are then parts of a sum that nobody has taken yet: those of norms of heads, which are split over the
    ranks, and under sequence parallelism those of norms of tokens.

    Args:
        module: whose parameters they are.
    """
    module.__dict__["gradients_are_partial"] = True


def partial_gradients(module: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters below a module whose gradients must be summed over the tensor-parallel ranks, each once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> mark_partial_gradients(model[1])
        >>> [parameter is model[1].weight for parameter in partial_gradients(model)]
        [True, False]
    """
    found = {
        id(parameter): parameter
        for part in module.modules()
        if part.__dict__.get("gradients_are_partial", False)
        for parameter in part.parameters()
    }
    yield from found.values()
