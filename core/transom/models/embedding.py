"""Token embeddings, learned positions and dropout: what stands before the first layer."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.direct_attributes import submodule

__all__ = ["LanguageModelEmbedding"]


@final
class LanguageModelEmbedding(nn.Module):
    """``dropout(multiplier · word_embeddings(tokens) + position_embeddings(positions))``.

    Args:
        word_embeddings: maps ids ``[b, s]`` to ``[b, s, h]``.
        position_embeddings: maps positions ``[(b,) s]`` to ``[(b,) s, h]``; `None` = no learned positions.
        dropout: probability of zeroing an element in training.
        dtype: of the result; `None` = the table's.
        multiplier: of the token embeddings.

    Example:
        >>> embedding = LanguageModelEmbedding(nn.Embedding(10, 4), nn.Embedding(8, 4))
        >>> embedding(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """

    word_embeddings: nn.Module = submodule()
    position_embeddings: nn.Module | None = submodule()

    def __init__(
        self,
        word_embeddings: nn.Module,
        position_embeddings: nn.Module | None = None,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings
        self.position_embeddings = position_embeddings
        self.dropout = dropout
        self.dtype = dtype
        self.multiplier = multiplier

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map ids ``[b, s]`` to ``[b, s, h]``; ``positions`` `None` = 0 ... s-1."""
        hidden: Tensor = self.word_embeddings(tokens)  # [b, s] -> [b, s, h]
        if self.multiplier != 1.0:
            hidden = hidden * self.multiplier
        if self.position_embeddings is not None:
            if positions is None:
                positions = torch.arange(tokens.shape[1], device=tokens.device)
            # Padding is at negative positions: any row of the table serves, for nobody reads what becomes of it.
            hidden = hidden + self.position_embeddings(positions.clamp(min=0))
        if self.dtype is not None:
            hidden = hidden.to(self.dtype)
        return F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden
