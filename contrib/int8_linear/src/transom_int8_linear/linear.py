"""A linear whose weight is kept in eight bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transom.slots.linear import Linear

__all__ = ["Int8Linear", "quantized"]


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to integers, each row by a scale of its own.

    Args:
        weight: floating ``[out, in]``.

    Returns:
        integers -127 ... 127 ``[out, in]`` in int8, and scales ``[out]`` in the weight's dtype: their product is the
        weight to half a scale. A row of zeros has scale 0.

    Example:
        >>> integers, scale = quantized(torch.tensor([[0.5, -1.27, 0.0]]))
        >>> integers, scale
        (tensor([[  50, -127,    0]], dtype=torch.int8), tensor([0.0100]))
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    # What is divided by is what will be multiplied by, rounding included.
    scale = (wide.abs().amax(dim=1) / 127).to(weight.dtype)
    divisor = scale.to(wide.dtype).masked_fill(scale == 0, 1.0)[:, None]
    return (wide / divisor).round().clamp(-127, 127).to(torch.int8), scale


class _Product(torch.autograd.Function):
    """``x W^T`` for integers W; backward makes the floating W again, so that none is kept meanwhile."""

    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, x: Tensor, integers: Tensor, /) -> Tensor: ...

    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: Tensor) -> Tensor:
        ctx.save_for_backward(integers)
        return F.linear(x, integers.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (integers,) = ctx.saved_tensors
        return gradient @ integers.to(gradient.dtype), None


@final
class Int8Linear(nn.Module):
    """``(x W^T) * scale + bias``, W in int8: a quarter of the memory of float32, and half of that of bfloat16.

    Products are computed in the dtype of x, in which these integers are exact. A state with a floating ``weight`` loads
    and is rounded; states of this module have ``weight_int8`` and ``weight_scale`` in its place. Gradients go
    through to x; the integers do not learn, and neither does the bias.

    Args:
        linear: with a weight ``[out, in]`` and a bias or none, whole on this process; it is not needed any more.
    """

    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        made: Any = linear
        weight: Tensor = made.weight
        with torch.no_grad():
            # Whether it hands its bias on, it was told when it was made: it shows.
            _, handed_on = made(weight.new_zeros(1, weight.shape[1]))
        self.hands_bias_on = handed_on is not None
        self.bias: nn.Parameter | None = getattr(linear, "bias", None)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        integers, scale = quantized(weight)
        self.register_buffer("weight_int8", integers)
        self.register_buffer("weight_scale", scale)
        self.register_load_state_dict_pre_hook(_round_what_is_floating)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """What the integers stand for, ``[out, in]``, made when it is asked for."""
        return self.weight_int8.to(self.weight_scale.dtype) * self.weight_scale[:, None]

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x [..., in]`` to ``[..., out]``, and return the bias where the linear did."""
        output = _Product.apply(x, self.weight_int8) * self.weight_scale
        if self.hands_bias_on or self.bias is None:
            return output, self.bias
        return output + self.bias, None

    def backward_dw(self) -> None:
        """Do nothing: integers have no gradient."""

    def extra_repr(self) -> str:
        """Say the sizes."""
        out_features, in_features = self.weight_int8.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


def _round_what_is_floating(module: Int8Linear, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.pop(f"{prefix}weight", None)
    if weight is not None:
        scale_dtype = module.weight_scale.dtype
        state[f"{prefix}weight_int8"], state[f"{prefix}weight_scale"] = quantized(weight.to(scale_dtype))


if TYPE_CHECKING:

    def _is_a_linear(module: Int8Linear) -> Linear:
        return module
