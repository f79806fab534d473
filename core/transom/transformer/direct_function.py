"""Autograd functions that are applied without binding their arguments to names."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

__all__ = ["DirectFunction"]


class DirectFunction(Function):
    """An autograd function whose arguments are all given, by position.

    Where ``setup_context`` is a method of its own, torch inspects the signature of ``forward`` at every call, for
    defaults: that takes longer than a small operation. Within the transforms of `torch.func` all goes torch's way.

    Example:
        >>> class Double(DirectFunction):
        ...     @staticmethod
        ...     def forward(x):
        ...         return x * 2
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         pass
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return grad * 2
        >>> x = torch.ones(1, requires_grad=True)
        >>> Double.apply(x).backward()
        >>> x.grad
        tensor([2.])
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Compute ``forward`` and note it for the backward pass."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        unbound: Any = super(Function, cls)  # what torch's own method calls when it has bound the arguments
        return unbound.apply(*args)
