"""Tokens in the order of their experts, and back.

Each of t tokens is chosen k times: choice i belongs to token ``i // k``. Sorted by expert, the rows of one expert lie
together. Both ways and both of their derivatives gather; none scatters, so that all are deterministic on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["Order"]


@dataclass(frozen=True)
class Order:
    """An order of choices by expert.

    Args:
        choices: ``[n]``, the choices in that order.
        places: ``[n]``, where each choice is in it.
        counts: ``[E]``, how many are of each expert.

    Example:
        >>> order = Order.of(torch.tensor([[1, 0], [1, 2]]), experts=4)
        >>> order.counts
        tensor([1, 2, 1, 0])
        >>> rows = order.sorted(torch.tensor([[10.0], [20.0]]), k=2)
        >>> rows.flatten()
        tensor([10., 10., 20., 20.])
        >>> order.unsorted(rows).view(2, 2)
        tensor([[10., 10.],
                [20., 20.]])
    """

    choices: Tensor
    places: Tensor
    counts: Tensor

    @classmethod
    def of(cls, experts_of: Tensor, experts: int) -> Order:
        """Sort choices.

        Args:
            experts_of: integers of any shape, the expert of each choice.
            experts: E.
        """
        flat = experts_of.flatten()
        choices = flat.argsort(stable=True)
        places = torch.empty_like(choices).scatter_(0, choices, torch.arange(len(flat), device=flat.device))
        counts = torch.zeros(experts, dtype=torch.long, device=flat.device)
        return cls(choices, places, counts.scatter_add_(0, flat, torch.ones_like(flat)))

    def sorted(self, x: Tensor, k: int = 1) -> Tensor:
        """Give the rows of tokens ``x [n / k, h]`` in the order of experts, ``[n, h]``."""
        return _Gather.apply(x, self.choices // k, self.places, k)

    def unsorted(self, rows: Tensor) -> Tensor:
        """Give rows ``[n, h]`` in the order of choices."""
        return _Gather.apply(rows, self.places, self.choices, 1)


class _Gather(Function):
    """``x[index]``, of which row i of x comes up k times: at ``back[k·i : k·i + k]``."""

    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, x: Tensor, index: Tensor, back: Tensor, k: int, /) -> Tensor: ...

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.k = k
        return x[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        rows = grad[back]
        return rows if ctx.k == 1 else rows.view(-1, ctx.k, rows.shape[-1]).sum(1), None, None, None
