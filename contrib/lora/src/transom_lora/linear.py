"""A linear, and a product of two small matrices beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn
from transom.checkpoint.layout_map import LayoutMap, Rule

from transom_lora.low_rank import draw, low_rank

if TYPE_CHECKING:
    from transom.slots.linear import Linear
    from transom.slots.norm_linear import NormLinear

__all__ = ["LoraLinear"]


@final
class LoraLinear(nn.Module):
    """``linear(x) + (dropout(x) A^T) B^T * alpha / rank``.

    Checkpoints hold the linear's weight and bias under their own names, beside ``lora_a`` and ``lora_b``. A state of
    the model without adapters loads, and the adapters keep what they hold.

    Args:
        linear: with a weight ``[out, in]``, which may be a frozen one in fewer bits; its output is left as it was until
            the adapter has learned something.
        rank: r, of the product.
        alpha: the product is multiplied by alpha / r.
        dropout: probability of dropping an element of the adapter's input in training.

    Attributes:
        lora_a: ``[r, in]``.
        lora_b: ``[out, r]``, zeros at first.

    Source: Hu et al. 2021, section 4.1; A is drawn as torch draws a linear's weight, as in the published code.

    Example:
        >>> from transom import TransformerConfig
        >>> from transom.transformer.linear import ColumnLinear
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = ColumnLinear(
        ...     4, 6, config=config, init_method=nn.init.ones_, gather_output=False, bias=False, skip_bias_add=False,
        ...     is_expert=False, tp_comm_buffer_name=None, tp_group=None,
        ... )
        >>> adapted = LoraLinear(linear, rank=2, alpha=4.0)
        >>> x = torch.randn(1, 3, 4)
        >>> torch.equal(adapted(x)[0], linear(x)[0]), sorted(dict(adapted.named_parameters()))
        (True, ['linear.weight', 'lora_a', 'lora_b'])
    """

    def __init__(self, linear: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear: Any = linear
        self.scale = alpha / rank
        self.dropout = dropout
        weight = cast("Tensor", linear.weight)
        out_features, in_features = weight.shape
        self.lora_a = nn.Parameter(torch.empty(rank, in_features, dtype=weight.dtype, device=weight.device))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank, dtype=weight.dtype, device=weight.device))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_keep_when_absent)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Start with a product of zeros; the linear is left as it is."""
        draw(self.lora_a, self.lora_b)

    def layout_map(self) -> LayoutMap:
        """Say that the linear's weights have the names that they have without an adapter."""
        names = [name for name in self.linear.state_dict() if not name.endswith("_extra_state")]
        return LayoutMap([Rule(f"linear.{name}", name) for name in names])

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x [..., in]`` to ``[..., out]``, and return the linear's bias when it is not added."""
        output, bias = self.linear(x)
        dropout = self.dropout if self.training else 0.0
        return output + low_rank(self.norm(x), self.lora_a, self.lora_b, scale=self.scale, dropout=dropout), bias

    def norm(self, x: Tensor, /) -> Tensor:
        """Give what the linear's product is taken of: ``x``, normed where the linear norms it."""
        return self.linear.norm(x) if hasattr(self.linear, "norm") else x

    def backward_dw(self) -> None:
        """Add the linear's gradient that backward put off."""
        self.linear.backward_dw()

    def product(self) -> Tensor:
        """What the adapter adds to the weight, ``[out, in]``."""
        return self.lora_b @ self.lora_a * self.scale


def _keep_when_absent(module: LoraLinear, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state of the model without adapters load: complete it with what they hold."""
    own = {f"{prefix}lora_a": module.lora_a, f"{prefix}lora_b": module.lora_b}
    if own.keys().isdisjoint(state):
        state.update(own)


if TYPE_CHECKING:

    def _is_a_linear(module: LoraLinear) -> tuple[Linear, NormLinear]:
        return module, module
