"""Submodules, parameters and buffers of a module, found directly where `torch.nn.Module` keeps them.

A module keeps them in dictionaries of its own, which Python reads only after looking everywhere else: raising and
catching an error on the way. Where a step is small, that is a good part of it. A class that names what it has finds it
in a quarter of the time, and nothing else changes: they are assigned, replaced, listed, moved and saved as ever.
"""

from __future__ import annotations

from typing import Any, final

from torch import nn

__all__ = ["buffer", "parameter", "submodule"]


def submodule() -> Any:
    """Declare in a class the name of a submodule.

    What is no module, `None` or a function say, may be assigned to that name too.

    Example:
        >>> class Pair(nn.Module):
        ...     first: nn.Module = submodule()
        >>> pair = Pair()
        >>> pair.first = nn.ReLU()
        >>> pair.first, list(pair.named_children())
        (ReLU(), [('first', ReLU())])
        >>> pair.first = None
        >>> pair.first, list(pair.named_children())
        (None, [])
    """
    return _Direct("_modules")


def parameter() -> Any:
    """Declare in a class the name of a parameter.

    Example:
        >>> import torch
        >>> class Scale(nn.Module):
        ...     weight: nn.Parameter = parameter()
        >>> scale = Scale()
        >>> scale.weight = nn.Parameter(torch.ones(1))
        >>> scale.weight is scale.get_parameter("weight")
        True
    """
    return _Direct("_parameters")


def buffer() -> Any:
    """Declare in a class the name of a buffer.

    Example:
        >>> import torch
        >>> class Table(nn.Module):
        ...     data: torch.Tensor = buffer()
        >>> table = Table()
        >>> table.register_buffer("data", torch.ones(1))
        >>> table.data
        tensor([1.])
    """
    return _Direct("_buffers")


@final
class _Direct:
    """Reads from one of a module's dictionaries; what is assigned goes the way that it always goes."""

    __slots__ = ("name", "place")

    def __init__(self, place: str) -> None:
        self.place, self.name = place, ""

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self.name = name

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> Any:
        if module is None:
            return self
        try:
            return module.__dict__[self.place][self.name]
        except KeyError:  # nn.Module looks everywhere, or tells that there is none
            raise AttributeError(self.name) from None
