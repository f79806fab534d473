"""The product of a linear, by oneDNN where it can be and by torch elsewhere.

On a CPU, torch multiplies float32 matrices by the BLAS that it was built with, and keeps oneDNN for narrower dtypes.
Which is faster depends on the processor. oneDNN is asked here through the operator that torch's compiler uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

__all__ = ["linear", "missing"]

_KINDS = (Tensor, nn.Parameter)

# A torch that was built without oneDNN has no such operator.
_has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_pointwise: Any = torch.ops.mkldnn._linear_pointwise.default if _has_onednn else None


def missing() -> str | None:
    """Say why oneDNN cannot be used; `None` when it can.

    Example:
        >>> missing() is None or "oneDNN" in missing()
        True
    """
    return None if _pointwise is not None else "this torch was built without oneDNN"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, /) -> Tensor:
    """Compute ``x @ weight.T + bias``, as `torch.nn.functional.linear`.

    oneDNN makes the output and the input's gradient of plain float32 tensors on a CPU, once differentiated and more
    often, and the weight's gradient where it is compiled. Otherwise that is torch's; so is all of any other dtype or
    device, under autocast, of tensor subclasses and within transforms of `torch.func`. A single row that is being
    compiled is torch's too, for a compiler makes one loop of it.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``, or `None`.

    Returns:
        ``[..., out]``, to the rounding of float32 what torch gives.

    Raises:
        RuntimeError: the sizes do not fit, in torch's words.

    Source: oneDNN, inner product primitive.

    Example:
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        tensor([[11., 17.]])
    """
    if not _is_onednns(x, weight) or not (bias is None or bias.shape == weight.shape[:1]):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _is_onednns(x: Tensor, weight: Tensor) -> bool:
    """Whether these are plain matrices of float32 on a CPU that fit, and nobody but autograd looks on."""
    are_plain = type(x) in _KINDS and type(weight) in _KINDS
    if not are_plain or not x.dtype is weight.dtype is torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if not x.device.type == weight.device.type == "cpu" or not x.shape[-1] == weight.shape[1] != 0:
        return False
    if torch.compiler.is_compiling():
        return x.numel() != x.shape[-1]
    return not torch._C._are_functorch_transforms_active()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The compiler knows the operator with weights that never change; ours is one that it calls as it is.
    if torch.compiler.is_compiling():
        product: Tensor = _in_graphs(x, weight, bias)
    else:
        product = _pointwise(x, weight, bias, "none", (), "")
    return product


@torch.library.custom_op("transom_onednn_linear::product", mutates_args=(), device_types="cpu")
def _in_graphs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.shape[-1]:  # a weight's gradient where there are no tokens: oneDNN has no product of nothing
        return F.linear(x, weight, bias)
    product: Tensor = _pointwise(x, weight, bias, "none", (), "")
    return product


@_in_graphs.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any = None) -> int:
    return 2 * prod(x) * weight[0]


# torch.utils.flop_counter counts the products that it knows of; a later torch may know its own.
for _operator in (torch.ops.transom_onednn_linear.product, _pointwise and _pointwise.overloadpacket):
    if _operator is not None and _operator not in flop_registry:
        register_flop_formula(_operator)(_flops)


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    # [out, rows] @ [rows, in]. oneDNN wants what comes first side by side, and only a compiler makes that quickly.
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return _product(grad.t().contiguous(), x.t(), None)
    return grad.t() @ x


class _Linear(torch.autograd.Function):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, x: Tensor, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [rows, out]
        return (
            linear(grad, weight.t()) if needs_x else None,  # [..., out] @ [out, in]
            _weight_gradient(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
