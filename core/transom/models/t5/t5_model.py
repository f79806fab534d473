"""T5: token ids to be read and token ids that are written, to logits or losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from transom.errors import CacheError, InputError
from transom.models.t5.inference_params import CacheMaker, InferenceParams, holds_context
from transom.models.t5.inputs import checked_ids, encoded, stage_inputs
from transom.models.t5.masks import Mask, mask_for, with_position_bias
from transom.models.t5.stages import Stage, forget_second_names, with_one_owner_each, with_positions
from transom.models.t5.submodules import T5Options, T5Parts, reference_parts
from transom.transformer.context_cache import EncoderDecoderCache
from transom.transformer.direct_attributes import submodule
from transom.transformer.module import Module
from transom.transformer.packed_seq_params import PackedSeqParams, packed_position_ids
from transom.transformer.sharding import Offset, ShardedStateDict
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.models.t5.stages import LayerSpecs
    from transom.slots.loss import Loss
    from transom.slots.model import CachedEncoderDecoder
    from transom.transformer.transformer_block import TransformerBlock
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["T5Model"]

_MASKS = ("bottom_right", "keep", "packed", "padding", "positions")


@final
class T5Model(Module):
    """An encoder that reads one sequence and a decoder that writes another, with cross-attention between them.

    Encoder and decoder share the word embeddings. Positions are learned, rotary, or relative: a learned bias of the
    scores of self-attention for each head and bucket of distances, the same in all layers of a stack.
    Masks are boolean, True = may attend: ``[b, t]`` (what is no padding), ``[b, s, t]`` or ``[b, 1, s, t]``; or an
    `AttentionMask`. Shapes: b batch, s written tokens, t read tokens, v vocabulary, h hidden size. Under sequence
    parallelism hidden states, in and out, are the rank's part of the sequence.

    Args:
        config: of the decoder.
        encoder_config: of the encoder.
        transformer_encoder_layer_spec: of the encoder's layers: a `ModuleSpec` or a name, for all alike; a builder,
            called with ``config``, ``layer_number`` and ``tp_group``; or a sequence of these, one a layer.
        transformer_decoder_layer_spec: of the decoder's layers, likewise.
        vocab_size: v.
        max_sequence_length: most tokens that are read, and that are written.
        pre_process: this pipeline stage has the embedding.
        post_process: this pipeline stage has the final norm, and after the decoder's last layer the head.
        fp16_lm_cross_entropy: losses are given in the model's dtype; they are computed in float32 all the same.
        parallel_output: leave logits split over the tensor-parallel ranks.
        share_embeddings_and_output_weights: the head's weight is the word embeddings.
        position_embedding_type: ``"learned_absolute"``, ``"rope"`` or ``"relative"``. This and the two that follow may
            stand here or in the configs: what is not the default counts.
        rotary_percent: share of a head that RoPE rotates.
        seq_len_interpolation_factor: RoPE's positions are divided by it.
        add_encoder: this pipeline stage has encoder layers.
        add_decoder: this pipeline stage has decoder layers.
        submodules: builders of what stands around the layers; `None` = core's own.
        options: what is not the configs' to say.
        masks: kinds of mask that callers may pass, beside causal: every core attention is asked for them.
        encoder_layers: numbers of this stage's encoder layers, counted from 1; `None` = all.
        decoder_layers: likewise of the decoder.
        tp_group: tensor-parallel process group.

    Raises:
        ConfigError: configs, arguments or stage cannot go together.
        TransomError: whatever resolving the names in a spec raises.

    Source: Raffel et al. 2020; the interface and the parameters' names are Megatron-core's.

    Example:
        >>> from transom import ModuleSpec, TransformerConfig
        >>> config = TransformerConfig(num_layers=2, hidden_size=16, num_attention_heads=2)
        >>> layer = ModuleSpec("transformer_layer")
        >>> model = T5Model(config, config, layer, layer, vocab_size=50, max_sequence_length=8)
        >>> read, written = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2]])
        >>> model(read, written, None, None, None).shape
        torch.Size([1, 2, 50])
        >>> model(read, written, None, None, None, lm_labels=written).shape
        torch.Size([1, 2])
    """

    embedding: Any = submodule()
    decoder: TransformerBlock | None = submodule()
    cache: EncoderDecoderCache | None = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        encoder_config: TransformerConfig,
        transformer_encoder_layer_spec: LayerSpecs,
        transformer_decoder_layer_spec: LayerSpecs,
        vocab_size: int,
        max_sequence_length: int,
        pre_process: bool = True,
        post_process: bool = True,
        fp16_lm_cross_entropy: bool = False,
        parallel_output: bool = True,
        share_embeddings_and_output_weights: bool = False,
        position_embedding_type: str = "learned_absolute",
        rotary_percent: float = 1.0,
        seq_len_interpolation_factor: float | None = None,
        add_encoder: bool = True,
        add_decoder: bool = True,
        *,
        submodules: T5Parts | None = None,
        options: T5Options | None = None,
        masks: Iterable[str] = _MASKS,
        encoder_layers: Sequence[int] | None = None,
        decoder_layers: Sequence[int] | None = None,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        positions = (position_embedding_type, rotary_percent, seq_len_interpolation_factor)
        config, encoder_config = (with_positions(each, *positions) for each in (config, encoder_config))
        super().__init__(config, tp_group)
        stage = Stage(
            config=config,
            encoder_config=encoder_config,
            vocab_size=vocab_size,
            max_sequence_length=max_sequence_length,
            pre_process=pre_process,
            post_process=post_process,
            add_encoder=add_encoder,
            add_decoder=add_decoder,
            is_shared=share_embeddings_and_output_weights,
            parallel_output=parallel_output,
            parts=submodules or reference_parts(config, vocab_size),
            options=options or T5Options(),
            masks=frozenset({"causal", *masks}),
            tp_group=tp_group,
        )
        stage.check()
        self.encoder_config, self.masks = encoder_config, stage.masks
        self.max_sequence_length, self.is_tied = max_sequence_length, share_embeddings_and_output_weights
        self.pre_process, self.post_process = pre_process, post_process
        self.sequence_ranks = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.embedding = stage.embedding()
        self.encoder_relative_pos_emb = stage.encoder_bias()
        self.encoder = stage.encoder(transformer_encoder_layer_spec, encoder_layers)
        self.decoder_relative_pos_emb = stage.decoder_bias()
        self.decoder = stage.decoder(transformer_decoder_layer_spec, decoder_layers)
        self.lm_head = stage.head()
        self.read_dropout, self.written_dropout = stage.output_dropout()
        self.loss: Loss = stage.parts.loss(config)
        self.make_cache = CacheMaker(stage.cache(), stage.masks, max_sequence_length)
        self.fp16_lm_cross_entropy, self.cache = fp16_lm_cross_entropy, None
        self.encoder_hidden_state: Tensor | None = None
        self.register_load_state_dict_pre_hook(forget_second_names)  # type: ignore[no-untyped-call]

    def forward(
        self,
        encoder_input_ids: Tensor | None,
        decoder_input_ids: Tensor | None,
        encoder_attn_mask: Mask,
        decoder_attn_mask: Mask,
        encoder_decoder_attn_mask: Mask,
        lm_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        output_encoder_hidden_only: bool = False,
        inference_params: InferenceParams | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        *,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Read and write.

        Args:
            encoder_input_ids: integer ids ``[b, t]``; not read when there are ``encoder_hidden_states``.
            decoder_input_ids: integer ids ``[b, s]``.
            encoder_attn_mask: of the encoder; `None` = everyone to everyone.
            decoder_attn_mask: of the decoder among itself; `None` = causal, and ``[b, s]`` is causal too. Other tensors
                say themselves who sees whom.
            encoder_decoder_attn_mask: what the decoder may read; `None` = all.
            lm_labels: ids ``[b, s]``; -100 = no loss.
            encoder_hidden_states: ``[b, t, h]``, what the encoder gave before.
            output_encoder_hidden_only: run the encoder alone.
            inference_params: the caller's cache; the decoder's positions go on from its offset.
            packed_seq_params: each row (b = 1) holds several sequences; each gives what it gives alone.
            input_pos: position of each of ``decoder_input_ids``, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. The
                model's own caches need it.

        Returns:
            logits ``[b, s, v]``, with labels each token's cross-entropy ``[b, s]`` in nats; float32 at least. Without
            the head, or with ``output_encoder_hidden_only``, hidden states ``[b, s or t, h]``.

        Raises:
            InputError: what this stage needs is missing or of a wrong shape.
            MaskError: a mask has a wrong shape or dtype, or is of a kind that the model was not built for.
            CacheError: a step does not fit into the cache.
        """
        packed, read, cache = packed_seq_params, encoder_hidden_states, self.cache
        if inference_params is not None:
            cache, input_pos = self.make_cache.of_caller(inference_params, self.decoder, decoder_input_ids, input_pos)
        if read is None and self.encoder is not None and (encoder_input_ids is not None or not holds_context(cache)):
            read = self._read(encoder_input_ids, encoder_attn_mask, packed)
        if output_encoder_hidden_only or self.decoder is None:
            return encoded(read)
        masks = decoder_attn_mask, encoder_decoder_attn_mask
        hidden = self._write(decoder_input_ids, read, masks, input_pos, cache, packed)
        if self.lm_head is None or lm_labels is None:
            return self._logits(hidden)
        losses = self.lm_head.losses(self.loss, hidden, lm_labels, self._word_embeddings())
        return losses.to(self.lm_head.dtype) if self.fp16_lm_cross_entropy else losses

    def encode(self, encoder_input_ids: Tensor | None, encoder_attn_mask: Mask = None) -> Tensor:
        """Read.

        Args:
            encoder_input_ids: as in `forward`, like the mask; a later stage takes what `set_input_tensor` gave.
            encoder_attn_mask: of the encoder.

        Returns:
            hidden states ``[b, t, h]``, final norm included after the encoder's last stage.

        Raises:
            InputError: as `forward`, like `MaskError`; or there is no encoder on this stage.
        """
        return self._read(encoder_input_ids, encoder_attn_mask, None)

    def decode(
        self,
        decoder_input_ids: Tensor | None,
        encoder_hidden_states: Tensor | None = None,
        *,
        decoder_attn_mask: Mask = None,
        encoder_decoder_attn_mask: Mask = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Write: one step over the caches, or a whole sequence without.

        Args:
            decoder_input_ids: as in `forward`, like the following.
            encoder_hidden_states: what `encode` gave. With caches it may be left out after a sequence's first step; its
                keys and values are made once, and anew only for another tensor.
            decoder_attn_mask: with caches, key j is the one at position j.
            encoder_decoder_attn_mask: what may be read.
            input_pos: position of each id.

        Returns:
            logits ``[b, s, v]``, in float32 at least; hidden states of a stage without the head.

        Raises:
            InputError: as `forward`, like `MaskError` and `CacheError`; or there is no decoder on this stage.
        """
        masks = decoder_attn_mask, encoder_decoder_attn_mask
        return self._logits(self._write(decoder_input_ids, encoder_hidden_states, masks, input_pos, self.cache))

    def setup_caches(self, batch_size: int, dtype: torch.dtype | None = None, *, capacity: int | None = None) -> None:
        """Make room for what up to ``batch_size`` sequences write, and keep what they read once it is there.

        Args:
            batch_size: b.
            dtype: of what is kept; `None` = the parameters'.
            capacity: most positions that are written; `None` = ``max_sequence_length``.

        Raises:
            CacheError: the model has no decoder or was not built for caches, or a size is not one that it can have.
        """
        self.cache = self.make_cache(self.decoder, batch_size, dtype, capacity)

    def caches_are_enabled(self) -> bool:
        """Whether `setup_caches` was called."""
        return self.cache is not None

    def reset_caches(self) -> None:
        """Forget what was written and what was read, keeping the room; `CacheError` where there is none."""
        self._enabled("reset").reset()

    def reorder_caches(self, row_indices: Tensor) -> None:
        """Let row i go on from what row ``row_indices[i]`` has written and read; integers ``[b]``."""
        self._enabled("reorder").reorder(row_indices)

    def delete_caches(self) -> None:
        """Give the caches' memory back."""
        self.cache = None

    def set_input_tensor(self, input_tensor: Tensor | Sequence[Tensor]) -> None:
        """Give what the pipeline stage before returned, which the next call starts from; else an `InputError`.

        Args:
            input_tensor: with encoder layers their hidden states ``[b, t, h]``. With decoder layers alone those of the
                whole encoder; or two tensors, those of the decoder ``[b, s, h]`` and then the encoder's.
        """
        written, read = stage_inputs(input_tensor, has_encoder=self.encoder is not None)
        if self.encoder is not None:
            self.encoder.set_input_tensor(read)
            return
        assert self.decoder is not None, "a stage has layers"
        self.decoder.set_input_tensor(written)
        self.encoder_hidden_state = read

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the state as `transom.transformer.sharding` does; what several stages hold has one owner."""
        return with_one_owner_each(
            super().sharded_state_dict(prefix, sharded_offsets, metadata),
            prefix,
            has_encoder=self.encoder is not None,
            has_embedding=self.embedding is not None,
            is_tied=self.is_tied,
        )

    def _read(self, ids: Tensor | None, given: Mask, packed: PackedSeqParams | None) -> Tensor:
        if self.encoder is None:
            raise InputError("this stage has no encoder.", hint="pass encoder_hidden_states")
        positions = None if packed is None or ids is None else packed_position_ids(packed.cu_seqlens_kv, ids.shape[1])
        hidden = self._start("encoder_input_ids", ids, positions, self.encoder)
        b, t = self._shape(hidden)
        mask = mask_for("encoder_attn_mask", given, (b, t, t), self.masks, packed)
        mask = with_position_bias(mask, self.encoder_relative_pos_emb, t, positions)
        read = self.encoder(hidden, mask=mask, positions=positions)  # -> [b, t, h]
        return self._ended(read, self.encoder, self.read_dropout)

    def _write(
        self,
        ids: Tensor | None,
        read: Tensor | None,
        masks: tuple[Mask, Mask],
        positions: Tensor | None,
        cache: EncoderDecoderCache | None,
        packed: PackedSeqParams | None = None,
    ) -> Tensor:
        if self.decoder is None:
            raise InputError("this stage has no decoder.", hint="pass what encode() gives to one that has")
        if packed is not None and ids is not None:
            positions = packed_position_ids(packed.cu_seqlens_q, ids.shape[1])
        hidden = self._start("decoder_input_ids", ids, positions, self.decoder)
        read = self._context(read, cache, hidden.shape[0])
        (b, s), t = self._shape(hidden), None if read is None else self._shape(read)[1]
        mask = mask_for("decoder_attn_mask", masks[0], (b, s, s if cache is None else None), self.masks, packed)
        between = mask_for("encoder_decoder_attn_mask", masks[1], (b, s, t), self.masks, packed)
        capacity = None if cache is None else cache.capacity
        mask = with_position_bias(mask, self.decoder_relative_pos_emb, s, positions, capacity)
        written = self.decoder(hidden, mask=mask, context=read, context_mask=between, positions=positions, cache=cache)
        return self._ended(written, self.decoder, self.written_dropout)

    def _ended(self, hidden: Tensor, block: TransformerBlock, dropout: float) -> Tensor:
        """Give what a stack ends with; between stages the residual stream goes on as it is, and may be wider."""
        if not block.post_process:
            return hidden
        return F.dropout(hidden.to(torch_dtype(self.config.params_dtype)), dropout, self.training)

    def _start(self, name: str, ids: Tensor | None, positions: Tensor | None, block: TransformerBlock) -> Tensor:
        """Give what a stack starts from, ``[b, s, h]``: embeddings, or what the stage before returned."""
        if self.embedding is None:
            if block.input_tensor is None:
                raise InputError("this stage has nothing to start from.", hint="call set_input_tensor first")
            return block.input_tensor
        # Positions that are given are checked by what uses them: they may begin anew within a row.
        ids = checked_ids(name, ids, self.max_sequence_length if positions is None else None)
        hidden: Tensor = self.embedding(ids, positions)
        return hidden

    def _context(self, read: Tensor | None, cache: EncoderDecoderCache | None, b: int) -> Tensor | None:
        """Give what the decoder reads, ``[b, t, h]``; `None` = what its cache holds."""
        read = self.encoder_hidden_state if read is None else read
        if cache is not None:
            cache.read_from(read, b)
        elif read is None:
            raise InputError("the decoder has nothing to read.", hint="pass encoder_input_ids or encoder_hidden_states")
        return read

    def _logits(self, hidden: Tensor) -> Tensor:
        """Make logits ``[b, s, v]``, in float32 at least, where this stage has the head."""
        if self.lm_head is None:
            return hidden
        logits: Tensor = self.lm_head(hidden, self._word_embeddings())
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _shape(self, hidden: Tensor) -> tuple[int, int]:
        """Give the numbers of rows and tokens, of which sequence-parallel ranks have a part each."""
        return hidden.shape[0], hidden.shape[1] * self.sequence_ranks

    def _word_embeddings(self) -> Tensor | None:
        return None if self.embedding is None else cast("Tensor", self.embedding.word_embeddings.weight)

    def _enabled(self, what: str) -> EncoderDecoderCache:
        if self.cache is None:
            raise CacheError(f"there are no caches to {what}.", hint="call setup_caches(batch_size) first")
        return self.cache


if TYPE_CHECKING:

    def _is_a_model(model: T5Model) -> CachedEncoderDecoder:
        return model
