"""The model slot: token ids to logits or losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import ArchitectureRequest
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["MODEL", "Model", "ModelBuilder", "ModelRequest"]


@dataclass(frozen=True, kw_only=True)
class ModelRequest(ArchitectureRequest):
    """What a model must serve.

    Args:
        vocab_size: v, number of token ids.
        max_sequence_length: longest sequence.
        share_embeddings_and_output_weights: the output layer's weight is the embedding table.
    """

    vocab_size: int
    max_sequence_length: int
    share_embeddings_and_output_weights: bool = False


class Model(Protocol):
    """A language model."""

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | AttentionMask | None = None,
        input_pos: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            tokens: integer ids ``[b, s]``.
            mask: ``[b, s, s]`` boolean (True = may attend) or an `AttentionMask`; `None` = causal.
            input_pos: positions of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            labels: ``[b, s]``; -100 = none.

        Returns:
            logits ``[b, s, v]`` in float32, or, when labels are given, each token's loss ``[b, s]`` in float32, nats.
        """
        ...

    def __call__(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | AttentionMask | None = None,
        input_pos: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Run `forward`."""
        ...


class ModelBuilder(Protocol):
    """Makes a model; ``submodules`` as in `transom.slots.mlp.MLPBuilder`."""

    def __call__(
        self,
        config: TransformerConfig,
        submodules: Any,
        *,
        request: ModelRequest,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Model:
        """Make the module."""
        ...


MODEL = Slot(
    name="model",
    kind="architecture",
    api=(1, 0),
    summary="token ids to logits or losses",
    request=ModelRequest,
    builder=ModelBuilder,
    interface=Model,
    features={
        "tensor_parallel": "the weights are split over several processes",
        "pipeline_parallel": "the layers are split over several processes",
        "context_parallel": "each sequence is split over several processes",
    },
    default="decoder",
)
