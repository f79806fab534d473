"""RMSNorm whose backward pass takes few passes over memory where torch has no kernel for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

__all__ = ["rms_norm"]

_KINDS = (Tensor, nn.Parameter)
_WIDE = (torch.float32, torch.float64)


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Compute ``x / √(mean(x²) + ε) * scale`` over the last dimension.

    Torch's own function is called, unless it would be differentiated operation by operation: eagerly, on the CPU. There
    the gradients come from their formula, in a quarter of the time and without a copy of the normed input. The result
    has the same bits either way.

    Args:
        x: ``[..., h]``.
        scale: ``[h]``, of the same dtype.
        eps: ε.

    Returns:
        ``[..., h]``.

    Source: Zhang and Sennrich 2019, equation 4; with r = 1/√(mean(x²) + ε), the gradient of x is
    ``r (g * scale) - r³ x mean(g * scale * x)``.

    Example:
        >>> rms_norm(torch.tensor([1.0, 7.0]), torch.ones(2), 0.0)
        tensor([0.2000, 1.4000])
    """
    is_slow = torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_slow and x.dtype == scale.dtype and x.dtype in _WIDE and type(x) in _KINDS and type(scale) in _KINDS:
        normed: Tensor = _RMSNorm.apply(x, scale, eps)[0]
        return normed
    return torch.rms_norm(x, scale.shape, scale, eps)


class _RMSNorm(torch.autograd.Function):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, *args: Any) -> tuple[Tensor, Tensor]: ...

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # [..., 1]
        return (x * inverse).mul_(scale), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.eps = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these gradients will be asked for
            return *_gradients(grad, x, scale, ctx.eps), None
        products = (grad * x).reshape(-1, len(scale))  # [tokens, h]
        grad_scale = products.T.mv(inverse.flatten())
        mean = products.mv(scale).view_as(inverse) / len(scale)
        grad_x = (grad * scale).mul_(inverse).addcmul_(x, inverse.pow(3).mul_(mean), value=-1)
        return grad_x, grad_scale, None


def _gradients(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the same in operations that can be differentiated."""
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    scaled = grad * scale
    grad_x = inverse * scaled - inverse.pow(3) * x * (scaled * x).mean(-1, keepdim=True)
    return grad_x, (grad * x * inverse).reshape(-1, len(scale)).sum(0)
