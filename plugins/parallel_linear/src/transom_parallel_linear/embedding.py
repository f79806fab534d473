"""An embedding table whose rows are split over tensor-parallel processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from transom.transformer.collectives import (
    Ranks,
    copy_to_ranks,
    gather_features,
    gather_sequence,
    scatter_sequence,
    sum_over_ranks,
)
from transom.transformer.utils import torch_dtype

from transom_parallel_linear.shard import Shard, uneven
from transom_parallel_linear.split_module import SplitModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.embedding import Embedding, EmbeddingBuilder, EmbeddingRequest

__all__ = ["VocabParallelEmbedding"]


@final
class VocabParallelEmbedding(SplitModule):
    """A table with one row a token id, of which rank r holds the r-th of p blocks of rows.

    Args:
        num_embeddings: number of rows over all ranks, v, a multiple of p.
        embedding_dim: width of a row, h.
        config: dtype, initialisation, sequence parallelism.
        init_method: fills the whole table in place; every rank calls it with its generator in the same state.
        tp_group: the p ranks; `None` = one process.

    Raises:
        ParallelError: the rows cannot be split; nothing was allocated.

    Source: Shoeybi et al. 2019, Megatron-LM, section 3.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> table = VocabParallelEmbedding(5, 2, config=config, init_method=torch.nn.init.ones_, tp_group=None)
        >>> table(torch.tensor([[4, 0, 1]])).shape
        torch.Size([1, 3, 2])
    """

    weight: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        tp_group: ProcessGroup | None,
    ) -> None:
        shard = Shard(Ranks.of(tp_group))
        rows = shard.width(num_embeddings, name="num_embeddings", of=f"embedding {num_embeddings} x {embedding_dim}")
        super().__init__(shard)
        self.weight = shard.rest(torch.empty(rows, embedding_dim, dtype=torch_dtype(config.params_dtype)), tp_group)
        self.first = shard.ranks.rank * rows  # id of this rank's first row
        self.sequence_parallel = config.sequence_parallel and shard.ranks.size > 1
        self._config, self._init_method = config, init_method
        self.reset_parameters()

    @classmethod
    def supports(cls, request: EmbeddingRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = uneven(request.num_embeddings, 1, request.context.tensor_parallel_size)
        if reason is not None:
            yield f"num_embeddings cannot be split: {reason}"

    def reset_parameters(self) -> None:
        """Fill the table by the init method."""
        self.shard.fill(self.weight, self._init_method, self._config)

    def forward(self, ids: Tensor, /) -> Tensor:
        """Look ids up.

        Args:
            ids: integers ``[..., s]``, the same on every rank.

        Returns:
            ``[..., s, h]``, the same on every rank; with sequence parallelism this rank's ``[..., s/p, h]``.
        """
        ranks, weight = self.shard.ranks, self.shard.local(self.weight)
        if ranks.size == 1:
            return F.embedding(ids, weight)
        rows = ids - self.first
        elsewhere = self._elsewhere(rows, len(weight))
        found = F.embedding(rows.masked_fill(elsewhere, 0), weight).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return scatter_sequence(found, ranks) if self.sequence_parallel else sum_over_ranks(found, ranks)

    def project(self, hidden: Tensor, /) -> Tensor:
        """Multiply by the transposed table: the logits of a model whose output layer is its embedding.

        Args:
            hidden: ``[..., h]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, h]``.

        Returns:
            ``[..., v]`` of the whole sequence, the same on every rank.
        """
        ranks, weight = self.shard.ranks, self.shard.local(self.weight)
        if ranks.size == 1:
            return F.linear(hidden, weight)
        hidden = gather_sequence(hidden, ranks) if self.sequence_parallel else copy_to_ranks(hidden, ranks)
        return gather_features(F.linear(hidden, weight), ranks)

    def _elsewhere(self, rows: Tensor, count: int) -> Tensor:
        """Say which ids are other ranks'; ids of no rank are the first's or the last's, whose lookup refuses them."""
        before = (rows < 0) if self.first else torch.zeros_like(rows, dtype=torch.bool)
        if self.shard.ranks.rank == self.shard.ranks.size - 1:
            return before
        return before | (rows >= count)

    def extra_repr(self) -> str:
        """Say the shape of this rank's part."""
        rows, width = self.shard.local(self.weight).shape
        ranks = self.shard.ranks
        return f"{rows}, {width}" + ("" if ranks.size == 1 else f", rank={ranks.rank} of {ranks.size}")


if TYPE_CHECKING:
    _builder: EmbeddingBuilder = VocabParallelEmbedding

    def _is_an_embedding(module: VocabParallelEmbedding) -> Embedding:
        return module
