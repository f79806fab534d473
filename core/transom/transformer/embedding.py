"""Token ids to vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.direct_attributes import parameter
from transom.transformer.initialization import initialize
from transom.transformer.linear import refuse_several_ranks
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from transom.slots.embedding import Embedding, EmbeddingBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["VocabEmbedding"]


@final
class VocabEmbedding(nn.Module):
    """A table with one row a token id, whole on one process.

    Args:
        num_embeddings: number of rows, v.
        embedding_dim: width of a row.
        config: dtype and initialisation.
        init_method: fills the table in place.
        tp_group: `None`, or a group of one process.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> table = VocabEmbedding(5, 2, config=config, init_method=nn.init.ones_, tp_group=None)
        >>> table(torch.tensor([[4, 0, 1]])).shape
        torch.Size([1, 3, 2])
    """

    weight: Tensor = parameter()

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        tp_group: torch.distributed.ProcessGroup | None,
    ) -> None:
        super().__init__()
        refuse_several_ranks("torch_embedding", tp_group)
        dtype = torch_dtype(config.params_dtype)
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, dtype=dtype))
        self._config, self._init_method = config, init_method
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table by the init method."""
        initialize(self.weight, self._init_method, self._config)

    def forward(self, ids: Tensor, /) -> Tensor:
        """Map integer ids ``[...]`` to ``[..., embedding_dim]``."""
        return F.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        """Say the table's shape."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


if TYPE_CHECKING:
    _builder: EmbeddingBuilder = VocabEmbedding

    def _is_an_embedding(module: VocabEmbedding) -> Embedding:
        return module
