"""The embedding slot: token ids to vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["EMBEDDING", "Embedding", "EmbeddingBuilder", "EmbeddingRequest"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest(Request):
    """What an embedding must serve: ``num_embeddings`` rows of ``embedding_dim``."""

    num_embeddings: int
    embedding_dim: int


class Embedding(Protocol):
    """A table of vectors; ``weight`` has shape ``[num_embeddings, embedding_dim]``.

    One that is split over several processes has, beside `forward`, ``project(hidden, /)``: from ``[b, s, h]`` to logits
    ``[b, s, v]`` on every rank, for models whose output layer is the table.
    """

    weight: Tensor

    def forward(self, ids: Tensor, /) -> Tensor:
        """Map integer ids ``[...]`` to ``[..., embedding_dim]``."""
        ...

    def __call__(self, ids: Tensor, /) -> Tensor:
        """Run `forward`."""
        ...


class EmbeddingBuilder(Protocol):
    """Makes an embedding of ``num_embeddings`` rows; ``init_method`` fills the table in place."""

    def __call__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        tp_group: torch.distributed.ProcessGroup | None,
    ) -> Embedding:
        """Make the module."""
        ...


EMBEDDING = Slot(
    name="embedding",
    kind="kernel",
    api=(1, 0),
    summary="token ids to vectors",
    request=EmbeddingRequest,
    builder=EmbeddingBuilder,
    interface=Embedding,
    features={
        "tensor_parallel": "the vocabulary is split over several processes",
        "sequence_parallel": "the vectors that come out are split along the sequence",
    },
    default="torch_embedding",
)
