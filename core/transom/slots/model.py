"""The model slot: token ids to logits or losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import ArchitectureRequest
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "MODEL",
    "CachedEncoderDecoder",
    "EncoderDecoder",
    "Model",
    "ModelBuilder",
    "ModelRequest",
    "ModelStage",
    "StagedModelBuilder",
]


@dataclass(frozen=True, kw_only=True)
class ModelRequest(ArchitectureRequest):
    """What a model must serve.

    Args:
        vocab_size: v, number of token ids.
        max_sequence_length: longest sequence.
        share_embeddings_and_output_weights: the output layer's weight is the embedding table.
        encoder_config: of the encoder, where it is not ``config``; only for the feature ``encoder_decoder``.
    """

    vocab_size: int
    max_sequence_length: int
    share_embeddings_and_output_weights: bool = False
    encoder_config: TransformerConfig | None = None


class Model(Protocol):
    """A language model that goes on with what it reads."""

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
            logits ``[b, s, v]`` in float32, or, when labels are given, each token's loss ``[b, s]`` in nats: float32,
            or float64 where the parameters are.
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


class EncoderDecoder(Protocol):
    """A language model that reads one sequence and writes another; its card declares ``encoder_decoder``.

    Masks are boolean, True = may attend: ``[b, t]`` (what is no padding), ``[b, s, t]`` or ``[b, 1, s, t]``; or
    they are an `AttentionMask`.
    """

    def forward(
        self,
        encoder_input_ids: Tensor | None,
        decoder_input_ids: Tensor | None,
        encoder_attn_mask: Tensor | AttentionMask | None,
        decoder_attn_mask: Tensor | AttentionMask | None,
        encoder_decoder_attn_mask: Tensor | AttentionMask | None,
        lm_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Read and write: `encode`, then `decode`.

        Args:
            encoder_input_ids: integer ids ``[b, t]``; not read when there are ``encoder_hidden_states``.
            decoder_input_ids: integer ids ``[b, s]``.
            encoder_attn_mask: of the encoder; `None` = everyone to everyone.
            decoder_attn_mask: of the decoder among itself; `None` = causal. ``[b, s]`` is causal too.
            encoder_decoder_attn_mask: what the decoder may read of the encoder; `None` = all.
            lm_labels: ``[b, s]``; -100 = none.
            encoder_hidden_states: ``[b, t, h]``, what `encode` gave.

        Returns:
            logits ``[b, s, v]``, or, when labels are given, each token's loss ``[b, s]`` in nats; float32 at least.
        """
        ...

    def __call__(
        self,
        encoder_input_ids: Tensor | None,
        decoder_input_ids: Tensor | None,
        encoder_attn_mask: Tensor | AttentionMask | None,
        decoder_attn_mask: Tensor | AttentionMask | None,
        encoder_decoder_attn_mask: Tensor | AttentionMask | None,
        lm_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Run `forward`."""
        ...

    def encode(self, encoder_input_ids: Tensor, encoder_attn_mask: Tensor | AttentionMask | None = None) -> Tensor:
        """Read: ids ``[b, t]`` to hidden states ``[b, t, h]``, final norm included."""
        ...

    def decode(
        self,
        decoder_input_ids: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        decoder_attn_mask: Tensor | AttentionMask | None = None,
        encoder_decoder_attn_mask: Tensor | AttentionMask | None = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Write: one step, or a whole sequence.

        Args:
            decoder_input_ids: integer ids ``[b, s]``.
            encoder_hidden_states: ``[b, t, h]``, what `encode` gave. With caches it may be left out after the first
                step of a sequence.
            decoder_attn_mask: as in `forward`; with caches over what is cached.
            encoder_decoder_attn_mask: as in `forward`.
            input_pos: position of each id, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. Caches need it.

        Returns:
            logits ``[b, s, v]``, float32 at least.
        """
        ...


class CachedEncoderDecoder(EncoderDecoder, Protocol):
    """An `EncoderDecoder` that can keep the decoder's keys and values, those of what it reads included."""

    def setup_caches(self, batch_size: int, dtype: torch.dtype | None = None, *, capacity: int | None = None) -> None:
        """Make room for ``batch_size`` sequences of ``capacity`` positions; `None` = of ``max_sequence_length``."""
        ...

    def caches_are_enabled(self) -> bool:
        """Whether there is room."""
        ...

    def reset_caches(self) -> None:
        """Forget what is kept, what was read included, keeping the room."""
        ...

    def delete_caches(self) -> None:
        """Give the room back."""
        ...

    def reorder_caches(self, row_indices: Tensor) -> None:
        """Make row i what row ``row_indices[i]`` was, integers ``[b]``: what a beam search does between steps."""
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
    ) -> Model | EncoderDecoder:
        """Make the module."""
        ...


class ModelStage(Protocol):
    """A part of a model that one rank of a pipeline computes; its parameters have the names of the whole model.

    Layers that data-parallel ranks split one by one are in a container ``layers`` of it, or of a module below it.
    """

    def forward(self, *received: Any, **batch: Any) -> Tensor | tuple[Tensor, ...]:
        """Run the stage.

        Args:
            received: what the stage before returned; of the first stage what the model starts from, ids ``[b, s]``.
            batch: what the whole model takes besides, by name, which every stage is given.

        Returns:
            what the next stage needs, of the same shapes in every step; of the last stage each token's loss ``[b, s]``.
        """
        ...

    def __call__(self, *received: Any, **batch: Any) -> Tensor | tuple[Tensor, ...]:
        """Run `forward`."""
        ...

    def shared(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the parameters that other stages may hold too, under their names in the whole model.

        Their gradients are added up over the stages, of which the first counts as their owner. Stages of one rank have
        the same `Parameter`.
        """
        ...


class StagedModelBuilder(ModelBuilder, Protocol):
    """A model builder whose models can be cut into the stages of a pipeline; its card declares it."""

    def stages(
        self,
        config: TransformerConfig,
        submodules: Any,
        *,
        request: ModelRequest,
        place: int,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Sequence[ModelStage]:
        """Make what one rank has of a model, and keep nothing else.

        Parts are made in the order in which the whole model makes them, and those of other ranks dropped, so that all
        that is drawn at random is what one process draws.

        Args:
            config: of the whole model; says into how many stages it is cut, and where.
            submodules: as for the whole model.
            request: of the whole model.
            place: of the rank in the pipeline, from 0.
            tp_group: as for the whole model.

        Returns:
            the rank's stage, or its virtual stages in order; of all, stage ``i`` is on rank ``i % p``.
        """
        ...


MODEL = Slot(
    name="model",
    kind="architecture",
    api=(1, 1),
    summary="token ids to logits or losses",
    request=ModelRequest,
    builder=ModelBuilder,
    interface=Model,
    alternatives=(EncoderDecoder,),
    features={
        "encoder_decoder": "reads one sequence and writes another",
        "tensor_parallel": "the weights are split over several processes",
        "pipeline_parallel": "the layers are split over several processes",
        "context_parallel": "each sequence is split over several processes",
    },
    default="decoder",
)
