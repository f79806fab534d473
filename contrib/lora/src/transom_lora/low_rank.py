"""A product of two small matrices, by itself."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LowRank", "draw", "low_rank"]


def low_rank(x: Tensor, lora_a: Tensor, lora_b: Tensor, *, scale: float, dropout: float) -> Tensor:
    """Compute ``(dropout(x) A^T) B^T * scale``.

    Args:
        x: ``[..., in]``.
        lora_a: A ``[r, in]``.
        lora_b: B ``[out, r]``.
        scale: alpha / r.
        dropout: probability of dropping an element of x.

    Returns:
        ``[..., out]``.

    Source: Hu et al. 2021, equation 3.
    """
    return F.linear(F.linear(F.dropout(x, dropout), lora_a), lora_b) * scale


def draw(lora_a: Tensor, lora_b: Tensor) -> None:
    """Draw A as torch draws a linear's weight, as the published code does; B is zeros, and so is the product."""
    nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5))
    nn.init.zeros_(lora_b)


@final
class LowRank(nn.Module):
    """``(dropout(x) A^T) B^T * alpha / rank``: zeros until it has learned something.

    For a model that takes modules whose result it adds to projections of its own, as ``finetune_modules`` of
    `transom-zeta-block` are; the hook ``lora`` needs none of these.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        rank: r, of the product.
        alpha: the product is multiplied by alpha / r; `None` = 2 * r.
        dropout: probability of dropping an element of the input in training.

    Attributes:
        lora_a: ``[r, in]``.
        lora_b: ``[out, r]``.

    Source: Hu et al. 2021, section 4.1.

    Example:
        >>> queries = LowRank(32, 64, rank=4)
        >>> queries(torch.randn(2, 5, 32)).abs().max().item()
        0.0
    """

    def __init__(
        self, in_features: int, out_features: int, *, rank: int = 8, alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.scale = 2.0 if alpha is None else alpha / rank
        self.dropout = dropout
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a product of zeros."""
        draw(self.lora_a, self.lora_b)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``x [..., in]`` to ``[..., out]``."""
        dropout = self.dropout if self.training else 0.0
        return low_rank(x, self.lora_a, self.lora_b, scale=self.scale, dropout=dropout)
