"""A part of a T5 that one rank of a pipeline computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from transom.models.t5.inputs import checked_ids
from transom.models.t5.masks import with_position_bias
from transom.models.t5.t5_model import T5Model
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.sharding import ShardedModule
from transom.transformer.transformer_block import TransformerBlock, TransformerStack
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from transom.slots.model import ModelStage
    from transom.transformer.encoder_decoder_layout import EncoderDecoderStage

__all__ = ["T5Stage"]


@final
class T5Stage(ShardedModule):
    """Some consecutive layers of a T5's encoder or decoder, with what stands before the first or after the last.

    Encoder and decoder begin with the embedding, which both have; the decoder ends with the head, which has the
    embedding table once more where that is the output weight. The biases of positions are on every stage. Parameters
    have the names that they have in the whole T5, so that checkpoints do not depend on the cut.

    Stages hand on, in order: the encoder's hidden states ``[b, t, h]``; after its last stage what the decoder reads;
    from the decoder's first stage on the decoder's hidden states ``[b, s, h]`` and what it reads.

    Args:
        model: the whole; what the stage has stays shared with it, and the rest may be forgotten.
        cut: what it has, as `transom.transformer.encoder_decoder_layout.encoder_decoder_stages` says.

    Example:
        >>> import torch, transom
        >>> from transom.transformer.encoder_decoder_layout import EncoderDecoderStage
        >>> model = transom.build("tiny-t5", seed=0)
        >>> stage = T5Stage(model, EncoderDecoderStage(True, 2, 1, begins=False, ends=True))
        >>> ids = torch.zeros(1, 3, dtype=torch.long)
        >>> stage(torch.zeros(1, 3, 128), torch.zeros(1, 5, 128), decoder_input_ids=ids, lm_labels=ids).shape
        torch.Size([1, 3])
        >>> sorted({name.rpartition(".mlp")[0] for name, _ in stage.named_parameters() if ".mlp" in name})
        ['decoder.layers.1']
    """

    def __init__(self, model: T5Model, cut: EncoderDecoderStage) -> None:
        super().__init__()
        whole = model.decoder if cut.is_decoder else model.encoder
        assert whole is not None, "the model is a whole one"
        self.cut, self.config, self.tensor_parallel_rank = cut, model.config, model.tensor_parallel_rank
        self.sequence_ranks, self.max_sequence_length = model.sequence_ranks, model.max_sequence_length
        has_head, is_tied = cut.is_decoder and cut.ends, model.lm_head is not None and model.lm_head.is_tied
        if cut.begins:
            self.embedding: Any = model.embedding
        elif has_head and is_tied:
            assert model.embedding is not None, "the model is a whole one"
            self.embedding = nn.Module()
            self.embedding.word_embeddings = model.embedding.word_embeddings
        bias = model.decoder_relative_pos_emb if cut.is_decoder else model.encoder_relative_pos_emb
        side = "decoder" if cut.is_decoder else "encoder"
        self.add_module(f"{side}_relative_pos_emb", bias)
        stack = _StackPart(whole, cut)
        self.add_module(side, stack)
        # What computes, under no name of its own.
        self._bias, self._stack = (bias,), (stack,)
        self.dropout = model.written_dropout if cut.is_decoder else model.read_dropout
        self.lm_head = model.lm_head if has_head else None
        self.loss: Any = model.loss if has_head else None

    def forward(self, *received: Tensor, decoder_input_ids: Tensor, lm_labels: Tensor) -> Any:
        """Run the stage.

        Args:
            received: the first stage's are ids ``[b, t]`` to be read; else what the stage before returned.
            decoder_input_ids: ids ``[b, s]``, which the decoder's first stage reads.
            lm_labels: ids ``[b, s]``, which the last stage reads; -100 = no loss.

        Returns:
            what the next stage needs; of the last stage each token's loss ``[b, s]``.
        """
        if not self.cut.is_decoder:
            (x,) = received
            return self._run(self._embedded("encoder_input_ids", x) if self.cut.begins else x)
        read = received[-1]
        start = self._embedded("decoder_input_ids", decoder_input_ids) if self.cut.begins else received[0]
        written = self._run(start, context=read)
        if self.lm_head is None:
            return written, read.view_as(read)
        table = self.embedding.word_embeddings.weight if self.lm_head.is_tied else None
        return self.lm_head.losses(self.loss, written, lm_labels, table)

    def shared(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the parameters that other stages have too: embedding tables and biases of positions."""
        for name, parameter in self.named_parameters():
            if name.startswith(_SHARED):
                yield name, parameter

    def _embedded(self, name: str, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(checked_ids(name, ids, self.max_sequence_length))  # [b, s] -> [b, s, h]
        return hidden

    def _run(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        length = hidden.shape[1] * self.sequence_ranks
        (bias,), (stack,) = self._bias, self._stack
        mask = with_position_bias(AttentionMask(causal=self.cut.is_decoder), bias, length, None)
        hidden = stack(hidden, mask, context)
        if not self.cut.ends:
            return hidden
        return F.dropout(hidden.to(torch_dtype(self.config.params_dtype)), self.dropout, self.training)


_SHARED = ("embedding.", "encoder_relative_pos_emb.", "decoder_relative_pos_emb.")


@final
class _StackPart(ShardedModule):
    """Layers of a stack under their names in the whole, and the final norm where they are the last."""

    def __init__(self, whole: TransformerBlock, cut: EncoderDecoderStage) -> None:
        super().__init__()
        indices = [number - 1 for number in cut.layer_numbers]
        self.layers = nn.ModuleDict({str(index): whole.layers[index] for index in indices})
        self._stack = (TransformerStack(self.layers.values(), recompute=whole.recompute),)
        self.final_layernorm = whole.final_layernorm if cut.ends else None

    def forward(self, hidden: Tensor, mask: AttentionMask, context: Tensor | None) -> Tensor:
        (stack,) = self._stack
        stack.train(self.training)
        hidden = stack.run_layers(hidden, mask=mask, context=context, context_mask=AttentionMask())
        return hidden if self.final_layernorm is None else self.final_layernorm(hidden)


if TYPE_CHECKING:

    def _is_a_stage(stage: T5Stage) -> ModelStage:
        return stage
