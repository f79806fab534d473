"""What stands in a place where nothing is to be done."""

from __future__ import annotations

from typing import Any, TypeVar, final

from torch import nn

__all__ = ["IdentityFuncOp", "IdentityOp"]

T = TypeVar("T")


@final
class IdentityOp(nn.Module):
    """Returns its first argument; builders' and forward's other arguments are ignored, as of any norm or dropout.

    Example:
        >>> IdentityOp(hidden_size=8)(3, training=True)
        3
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: T, /, *args: Any, **kwargs: Any) -> T:
        """Return ``x``, the same object."""
        return x


@final
class IdentityFuncOp(nn.Module):
    """Returns a function that returns its first argument: for places that are called for a function to call.

    Example:
        >>> IdentityFuncOp()(True, 0.1)("x")
        'x'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.op = IdentityOp()

    def forward(self, *args: Any, **kwargs: Any) -> IdentityOp:
        """Return the function."""
        return self.op
