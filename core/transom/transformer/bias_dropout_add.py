"""The end of a residual branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transom.slots.bias_dropout_add import BiasDropoutAdd as BiasDropoutAddInterface
    from transom.slots.bias_dropout_add import BiasDropoutAddBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["BiasDropoutAdd"]


@final
class BiasDropoutAdd(nn.Module):
    """``residual + dropout(x + bias)``.

    Args:
        config: is not read: all that matters comes with the call.

    Example:
        >>> import torch
        >>> from transom import TransformerConfig
        >>> add = BiasDropoutAdd(TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1))
        >>> add(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 10.0]), torch.tensor([100.0, 100.0]), 0.5, False)
        tensor([111., 112.])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, bias: Tensor | None, residual: Tensor, p: float, training: bool, /) -> Tensor:
        """Add a branch's result to the residual stream.

        Args:
            x: ``[..., h]``.
            bias: ``[h]``, or `None`.
            residual: ``[..., h]``.
            p: probability of dropping an element; the others are divided by 1 - p.
            training: drop; otherwise nothing is dropped.

        Returns:
            ``[..., h]`` in the residual's dtype.
        """
        branch = x if bias is None else x + bias
        if training and p > 0:
            branch = F.dropout(branch, p)
        return residual + (branch if branch.dtype == residual.dtype else branch.to(residual.dtype))


if TYPE_CHECKING:
    _builder: BiasDropoutAddBuilder = BiasDropoutAdd

    def _is_a_bias_dropout_add(module: BiasDropoutAdd) -> BiasDropoutAddInterface:
        return module
