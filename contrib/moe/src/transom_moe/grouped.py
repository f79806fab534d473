"""Linear maps of rows that lie together by group, each group by its own weight.

They are operators of their own: how many rows a group has is known on the device alone, and a compiled graph must not
ask. On CUDA in bfloat16 one kernel of torch does all groups; elsewhere they are done one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["grouped_linear", "grouped_outer"]

_ALIGNED = 8  # bfloat16 numbers in the 16 bytes at which torch's kernel wants rows to begin


@torch.library.custom_op(
    "transom_moe::grouped_linear", mutates_args=(), schema="(Tensor x, Tensor[] weights, Tensor counts) -> Tensor"
)
def grouped_linear(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Map each group's rows by its weight.

    Args:
        x: ``[n, in]``, the rows of the first group first.
        weights: E of ``[out, in]``.
        counts: ``[E]``, how many rows each group has; together n.

    Returns:
        ``[n, out]``.

    Example:
        >>> weights = [torch.full((1, 1), 10.0), torch.full((1, 1), 100.0)]
        >>> grouped_linear(torch.tensor([[1.0], [2.0], [3.0]]), weights, torch.tensor([1, 2]))
        tensor([[ 10.],
                [200.],
                [300.]])
    """
    if _has_kernel(x, *weights[0].shape):
        return kernel_linear(x, weights, counts)
    parts = torch.split(x, counts.tolist())
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weights, strict=True)])


@torch.library.custom_op(
    "transom_moe::grouped_outer", mutates_args=(), schema="(Tensor y, Tensor x, Tensor counts) -> Tensor"
)
def grouped_outer(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Multiply each group's rows with one another, ``y.T @ x``: what the weights' gradients are.

    Args:
        y: ``[n, out]``.
        x: ``[n, in]``.
        counts: ``[E]``.

    Returns:
        ``[E, out, in]``; zeros for a group without rows.
    """
    if _has_kernel(x, y.shape[1], x.shape[1]):
        return kernel_outer(y, x, counts)
    sizes = counts.tolist()
    return torch.stack(
        [left.T @ right for left, right in zip(torch.split(y, sizes), torch.split(x, sizes), strict=True)]
    )


def kernel_linear(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Compute `grouped_linear` by torch's kernel, which wants the weights in one tensor."""
    ends = counts.cumsum(0, dtype=torch.int32)
    return F.grouped_mm(x.contiguous(), torch.stack(tuple(weights)).transpose(1, 2), offs=ends)


def kernel_outer(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Compute `grouped_outer` by torch's kernel."""
    return F.grouped_mm(y.contiguous().T, x.contiguous(), offs=counts.cumsum(0, dtype=torch.int32))


def _has_kernel(x: Tensor, *widths: int) -> bool:
    return x.is_cuda and x.dtype is torch.bfloat16 and not any(width % _ALIGNED for width in widths)


@grouped_linear.register_fake
def _(x: Tensor, weights: Sequence[Tensor], counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights[0].shape[0])


@grouped_outer.register_fake
def _(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], y.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, counts = inputs
    ctx.save_for_backward(x, counts, *weights)


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None], None]:
    x, counts, *weights = ctx.saved_tensors
    needs_x, needs_weights, _ = ctx.needs_input_grad
    grad_x = grouped_linear(grad, [weight.T for weight in weights], counts) if needs_x else None
    asked = any(needs_weights) if isinstance(needs_weights, Sequence) else needs_weights
    grads: list[Tensor | None] = list(grouped_outer(grad, x, counts)) if asked else [None] * len(weights)
    return grad_x, grads, None


grouped_linear.register_autograd(_derive, setup_context=_keep)


@register_flop_formula(torch.ops.transom_moe.grouped_linear)
def _flops_of_linear(x: Any, weights: Any, counts: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    rows, width = x
    return 2 * int(rows) * int(width) * int(weights[0][0])


@register_flop_formula(torch.ops.transom_moe.grouped_outer)
def _flops_of_outer(y: Any, x: Any, counts: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * int(y[0]) * int(y[1]) * int(x[1])
