"""A part of a decoder that one rank of a pipeline computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn

from transom.errors import InputError
from transom.models.decoder import TransformerDecoder
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.sharding import ShardedModule
from transom.transformer.transformer_block import TransformerStack

if TYPE_CHECKING:
    from transom.slots.model import ModelStage
    from transom.transformer.pipeline_layout import PipelineStage

__all__ = ["DecoderStage"]


@final
class DecoderStage(ShardedModule):
    """Some consecutive layers of a decoder; the first stage has the embedding too, the last one norm, output and loss.

    Parameters have the names that they have in the whole decoder, so that checkpoints do not depend on the cut. An
    embedding table that is the output weight too is on the first stage and, as a copy, on the last.

    Args:
        decoder: the whole, with a loss; what the stage has stays shared with it, and the rest may be forgotten.
        stage: what it has, as `transom.transformer.pipeline_layout.stage_of` says.

    Raises:
        InputError: the decoder has no loss.

    Example:
        >>> import torch, transom
        >>> from transom.transformer.pipeline_layout import PipelineStage
        >>> decoder = transom.build("tiny-llama", seed=0)
        >>> cut = {"first_layer_number": 3, "num_layers": 2, "pre_process": False, "post_process": True}
        >>> stage = DecoderStage(decoder, PipelineStage(**cut))
        >>> stage(torch.zeros(1, 5, 192), labels=torch.zeros(1, 5, dtype=torch.long)).shape
        torch.Size([1, 5])
        >>> sorted({name.split(".")[1] for name, _ in stage.named_parameters() if name.startswith("layers")})
        ['2', '3']
    """

    def __init__(self, decoder: TransformerDecoder, stage: PipelineStage) -> None:
        super().__init__()
        if decoder.loss is None:
            raise InputError(
                "a decoder without a loss cannot be cut into stages.", hint="pass loss= to its constructor"
            )
        self.pre_process, self.post_process = stage.pre_process, stage.post_process
        indices = [number - 1 for number in stage.layer_numbers]
        self.layers = nn.ModuleDict({str(index): decoder.layers[index] for index in indices})
        # What computes, under no name of its own: its layers are those above.
        self._stack = (TransformerStack(self.layers.values(), recompute=decoder.recompute),)
        self.register_buffer("alibi_slopes", decoder.alibi_slopes, persistent=False)
        is_tied = decoder.output_layer is None
        if stage.pre_process:
            self.embedding: nn.Module = decoder.embedding
        elif stage.post_process and is_tied:
            self.embedding = nn.Module()
            self.embedding.word_embeddings = decoder.embedding.word_embeddings
        self.final_layernorm = decoder.final_layernorm if stage.post_process else None
        self.output_layer = decoder.output_layer if stage.post_process else None
        self.loss: Any = decoder.loss if stage.post_process else None
        self.is_tied = is_tied

    def forward(self, x: Tensor, *, labels: Tensor, input_pos: Tensor | None = None) -> Tensor:
        """Run the stage.

        Args:
            x: token ids ``[b, s]`` on the first stage; on others the hidden states ``[b, s, h]`` of the stage before.
            labels: ids ``[b, s]``, which the last stage reads; -100 = no loss.
            input_pos: of the tokens, ``[b, s]``; `None` = 0 ... s-1.

        Returns:
            hidden states ``[b, s, h]``; of the last stage each token's loss ``[b, s]``.
        """
        hidden = self.embedding(x, input_pos) if self.pre_process else x
        (stack,) = self._stack
        stack.train(self.training)
        mask = AttentionMask(causal=True, alibi_slopes=self.alibi_slopes)  # type: ignore[arg-type]
        hidden = stack.run_layers(hidden, mask=mask, positions=input_pos)
        return self._losses(hidden, labels) if self.final_layernorm is not None else hidden

    def shared(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the parameters that the first and the last stage both have."""
        if self.is_tied and (self.pre_process or self.post_process):
            words = self.embedding.get_submodule("word_embeddings")
            yield from words.named_parameters(prefix="embedding.word_embeddings")

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        assert self.final_layernorm is not None
        output: Any = self.embedding.word_embeddings if self.output_layer is None else self.output_layer
        weight = output.weight
        losses: Tensor = self.loss(
            self.final_layernorm(hidden).to(weight.dtype), weight, labels, getattr(self.output_layer, "bias", None)
        )
        return losses


if TYPE_CHECKING:

    def _is_a_stage(stage: DecoderStage) -> ModelStage:
        return stage
