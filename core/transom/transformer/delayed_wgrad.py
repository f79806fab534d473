"""A linear product whose weight gradient is computed later than the rest of the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DelayedLinear", "add_delayed_gradients"]


@final
class DelayedLinear:
    """Computes as `torch.nn.functional.linear`, but backward leaves the weight's gradient out until it is asked for.

    Pipeline schedules without bubbles fill their waiting time with weight gradients (Qi et al. 2023). Until then, the
    inputs and the output gradients of all passes stay in memory.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[2.0]]))
        >>> linear = DelayedLinear()
        >>> linear(torch.tensor([[3.0]]), weight, None).sum().backward()
        >>> weight.grad is None
        True
        >>> linear.add_gradient_to(weight)
        >>> weight.grad
        tensor([[3.]])
    """

    def __init__(self) -> None:
        self._put_off: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute ``x @ weight.T + bias``: ``[..., in]`` to ``[..., out]``."""
        return _LinearWithoutWeightGradient.apply(x, weight, bias, self._put_off)

    @torch.no_grad()
    def add_gradient_to(self, weight: Tensor) -> None:
        """Add to ``weight.grad`` what was put off since the last call, in the order of the backward passes."""
        for x, grad in self._put_off:
            gradient = grad.flatten(0, -2).T @ x.flatten(0, -2)  # [out, tokens] @ [tokens, in]
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        self._put_off.clear()


def add_delayed_gradients(model: nn.Module) -> None:
    """Let every linear of a model add the weight gradient that it has put off; those without one do nothing.

    Args:
        model: after a backward pass, or several.

    Example:
        >>> add_delayed_gradients(nn.Linear(2, 3))
    """
    for module in model.modules():
        add = getattr(module, "backward_dw", None)
        if callable(add):
            add()


class _LinearWithoutWeightGradient(torch.autograd.Function):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(
            cls, x: Tensor, weight: Tensor, bias: Tensor | None, put_off: list[tuple[Tensor, Tensor]], /
        ) -> Tensor: ...

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, put_off: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.put_off = put_off
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if needs_weight:
            ctx.put_off.append((x.detach(), grad))
        return grad @ weight if needs_x else None, None, grad.flatten(0, -2).sum(0) if needs_bias else None, None
