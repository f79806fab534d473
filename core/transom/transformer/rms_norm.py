"""RMSNorm in few operations, and few passes over memory, where torch has no kernel for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from transom.transformer.direct_function import DirectFunction
from transom.transformer.remade_input import can_be_remade, is_kept_as_it_is, with_remade

__all__ = ["rms_norm", "with_remade_norm"]

_T = TypeVar("_T")
_KINDS = (Tensor, nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Compute ``x / √(mean(x²) + ε) * scale`` over the last dimension.

    Torch's own function is called, unless it would run operation by operation: eagerly, on the CPU. There it takes
    fewer of them, which is most of the time of a single token; and the gradients come from their formula, in a quarter
    of the time and without a copy of the normed input. What is narrower than float32 is computed in float32, as torch
    does, and rounded once; but it is kept for the backward pass as it came.

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
    is_slow = x.is_cpu and type(x) in _KINDS and type(scale) in _KINDS and not is_dynamo_compiling()
    if not is_slow or x.dtype != scale.dtype or x.dtype not in _DTYPES:
        return torch.rms_norm(x, scale.shape, scale, eps)
    return (_RMSNorm.apply if torch.is_grad_enabled() else _normed)(x, scale, eps)[0]


def with_remade_norm(operation: Callable[[Tensor], _T], x: Tensor) -> _T:
    """Compute ``operation(x)``; an x that `rms_norm` made is not kept for the backward pass, but scaled there again.

    What that takes, its input and a number a token, is kept for the norm's own gradient. The gradients have the same
    bits. Another x is kept as it is, and so is any where others have a say in what is kept.

    Args:
        operation: a linear, say.
        x: its input.

    Returns:
        what ``operation`` gives.

    Example:
        >>> x = torch.randn(2, 4, requires_grad=True)
        >>> with_remade_norm(torch.relu, rms_norm(x, torch.ones(4), 1e-5)).shape
        torch.Size([2, 4])
    """
    if not x.requires_grad or not can_be_remade():
        return operation(x)
    node: Any = x.grad_fn
    is_normed = type(node) is _RMSNorm._backward_cls
    if not is_normed or not node.is_plain:
        return operation(x)
    kept, scale, inverse = (each.detach() for each in node.saved_tensors)
    return with_remade(operation, x, partial(_remade, kept, inverse, scale))


def _remade(x: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    return _scaled(x, _widened(x), inverse, scale)


def _normed(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the result and 1/√(mean(x²) + ε) ``[..., 1]``, which is float32 at least."""
    wide = x if x.dtype.itemsize >= 4 else x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(_constant(eps, wide.dtype), length, length, value=1 / x.shape[-1]).rsqrt_()
    normed = torch.mul(x, inverse).mul_(scale) if wide is x else _scaled(x, wide, inverse, scale)
    return normed, inverse


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


def _scaled(x: Tensor, wide: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    """Compute ``x * inverse * scale``; a copy of x that is wider is worked in."""
    normed = (torch.mul(x, inverse) if wide is x else wide.mul_(inverse)).mul_(scale)
    return normed if wide is x else normed.to(x.dtype)


@lru_cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # else it would serve in that mode only
        return torch.tensor(value, dtype=dtype)


class _RMSNorm(DirectFunction):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, *args: Any) -> tuple[Tensor, Tensor]: ...

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return _normed(x, scale, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.eps, ctx.is_plain = inputs[2], is_kept_as_it_is()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these gradients will be asked for
            return *_gradients(grad, x, scale, ctx.eps), None
        grad, wide_scale = grad.to(inverse.dtype), scale.to(inverse.dtype)
        products = (grad * x).reshape(-1, len(scale))  # [tokens, h]
        grad_scale = products.T.mv(inverse.flatten())
        mean = products.mv(wide_scale).view_as(inverse) / len(scale)
        grad_x = (grad * wide_scale).mul_(inverse).addcmul_(x, inverse.pow(3).mul_(mean), value=-1)
        return grad_x.to(x.dtype), grad_scale.to(scale.dtype), None


def _gradients(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute the same in operations that can be differentiated."""
    wide = torch.promote_types(x.dtype, torch.float32)
    grad, wide_x = grad.to(wide), x.to(wide)
    inverse = (wide_x.square().mean(-1, keepdim=True) + eps).rsqrt()
    scaled = grad * scale
    grad_x = inverse * scaled - inverse.pow(3) * wide_x * (scaled * wide_x).mean(-1, keepdim=True)
    grad_scale = (grad * wide_x * inverse).reshape(-1, len(scale)).sum(0)
    return grad_x.to(x.dtype), grad_scale.to(scale.dtype)
