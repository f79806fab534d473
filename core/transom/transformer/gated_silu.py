"""The gated unit of SwiGLU, which keeps its input alone for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.transformer.direct_function import DirectFunction

__all__ = ["gated_silu"]


def gated_silu(x: Tensor) -> Tensor:
    """Compute ``silu(gate) * up`` with ``[gate, up] = x``.

    Differentiated operation by operation, eagerly, it would keep ``silu(gate)`` and join the two gradients by a copy.
    Here that is computed again, and both gradients are written where they belong.

    Args:
        x: ``[..., 2f]``.

    Returns:
        ``[..., f]``.

    Source: Shazeer 2020, equation 6.

    Example:
        >>> gated_silu(torch.tensor([0.0, 2.0, 3.0, 1.0]))
        tensor([0.0000, 1.7616])
    """
    is_differentiated = torch.is_grad_enabled()
    if is_differentiated and type(x) is Tensor and not torch.compiler.is_compiling():
        return _GatedSilu.apply(x)
    gate, up = x.chunk(2, dim=-1)  # [..., 2f] -> 2 x [..., f]
    return F.silu(gate) * up if is_differentiated else F.silu(gate).mul_(up)


class _GatedSilu(DirectFunction):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, *args: Any) -> Tensor: ...

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of this gradient will be asked for
            return _gradient(grad, x)
        gate, up = x.chunk(2, dim=-1)
        grads = torch.empty_like(x)
        grad_gate, grad_up = grads.chunk(2, dim=-1)
        # What is computed on the way lies where a gradient will: nothing but the gradients is allocated.
        torch.mul(grad, up, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_up, gate, grad_input=grad_gate)
        torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
        return grads


def _gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute the same in operations that can be differentiated."""
    gate, up = x.chunk(2, dim=-1)
    share = gate.sigmoid()
    return torch.cat([grad * up * share * (1 + gate * (1 - share)), grad * F.silu(gate)], dim=-1)
