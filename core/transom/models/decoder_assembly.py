"""From a spec's parts to a decoder: what `model: decoder` builds."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transom.models.decoder import TransformerDecoder
from transom.models.decoder_stage import DecoderStage
from transom.models.embedding import LanguageModelEmbedding
from transom.transformer import parts
from transom.transformer.collectives import Ranks
from transom.transformer.initialization import NormalInit
from transom.transformer.pipeline_layout import stage_of
from transom.transformer.position_bias import alibi_slopes
from transom.transformer.recompute import LayerRecompute
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from transom.slots import Part, Parts
    from transom.slots.model import ModelRequest, StagedModelBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["DecoderAssembly", "DecoderSubmodules", "assemble_decoder"]


@dataclass(frozen=True)
class DecoderSubmodules:
    """The builders of a decoder's parts.

    Args:
        word_embeddings: the table of token vectors.
        layers: one builder a layer.
        loss: cross-entropy of tokens.
        position_embeddings: the table of learned positions, for ``position_embedding_type: learned_absolute``.
        final_layernorm: after the last layer.
        output_layer: to logits; `None` = the transposed embedding table.
        kv_cache: of keys and values, made when caches are set up.
    """

    # Those of layers and loss have their submodules and request bound: the slots' Protocols less these arguments.
    word_embeddings: Callable[..., nn.Module]
    layers: Sequence[Callable[..., nn.Module]]
    loss: Callable[..., Any]
    final_layernorm: Callable[..., nn.Module]
    position_embeddings: Callable[..., nn.Module] | None = None
    output_layer: Callable[..., nn.Module] | None = None
    kv_cache: Callable[..., Any] | None = None


class DecoderAssembly:
    """Makes a `TransformerDecoder` from a spec's parts; registered as ``decoder`` in the slot ``model``."""

    Submodules = DecoderSubmodules

    @staticmethod
    def supports(request: ModelRequest) -> Sequence[str]:
        """Say what a decoder cannot be."""
        found = []
        if request.config.position_embedding_type == "relative":
            found.append("relative positions are for encoder-decoder models")
        if request.config.pipeline_model_parallel_split_rank is not None:
            found.append("pipeline_model_parallel_split_rank is for encoder-decoder models")
        return found

    @staticmethod
    def parts(request: ModelRequest) -> Parts:
        """Name the places inside a decoder and what each must serve."""
        config = request.config
        hidden, vocab = config.hidden_size, request.vocab_size
        places: dict[str, Part | Sequence[Part]] = {
            "word_embeddings": parts.embedding(request, vocab, hidden, path="embedding.word_embeddings"),
        }
        if config.position_embedding_type == "learned_absolute":
            places["position_embeddings"] = parts.embedding(
                request, request.max_sequence_length, hidden, path="embedding.position_embeddings"
            )
        places["layers"] = [parts.layer(request, number) for number in range(1, config.num_layers + 1)]
        places["final_layernorm"] = parts.norm(request, hidden)
        if not request.share_embeddings_and_output_weights:
            places["output_layer"] = parts.column_linear(request, hidden, vocab, bias=False)
        places["loss"] = parts.loss(request, vocab)
        places["kv_cache"] = parts.kv_cache(request)
        return places

    def __call__(
        self,
        config: TransformerConfig,
        submodules: DecoderSubmodules,
        *,
        request: ModelRequest,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> TransformerDecoder:
        """Make every part, in the order in which a token meets them."""
        return _decoder(config, submodules, request, tp_group, range(1, config.num_layers + 1))

    @staticmethod
    def stages(
        config: TransformerConfig,
        submodules: DecoderSubmodules,
        *,
        request: ModelRequest,
        place: int,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> list[DecoderStage]:
        """Make the stages of one rank of a pipeline; of the other layers, one at a time is made and dropped."""
        virtual = config.virtual_pipeline_model_parallel_size
        cuts = [stage_of(config, place, number) for number in (range(virtual) if virtual else (None,))]
        wanted = {number for cut in cuts for number in cut.layer_numbers}
        decoder = _decoder(config, submodules, request, tp_group, wanted)
        return [DecoderStage(decoder, cut) for cut in cuts]


def _decoder(
    config: TransformerConfig,
    submodules: DecoderSubmodules,
    request: ModelRequest,
    tp_group: torch.distributed.ProcessGroup | None,
    wanted: Container[int],
) -> TransformerDecoder:
    embedding = _embedding(config, submodules, request, tp_group)
    layers = [_layer(config, make, number, tp_group, wanted) for number, make in enumerate(submodules.layers, 1)]
    norm = submodules.final_layernorm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
    is_alibi = config.position_embedding_type == "alibi"
    own_heads = Ranks.of(tp_group).part(alibi_slopes(config.num_attention_heads), 0)
    decoder = TransformerDecoder(
        embedding,
        layers,
        config.num_layers,
        request.max_sequence_length,
        config.num_attention_heads,
        config.kv_channels,
        norm,
        _output_layer(config, submodules.output_layer, request, tp_group),
        loss=submodules.loss(config),
        masks=request.masks,
        alibi_slopes=own_heads if is_alibi else None,
        recompute=LayerRecompute.of(config),
        kv_cache=None if submodules.kv_cache is None else partial(submodules.kv_cache, config),
        logit_softcap=config.final_logit_softcapping,
        takes_shares=config.context_parallel_size > 1,
    )
    decoder.tensor_parallel_rank = None if tp_group is None else tp_group.rank()
    return decoder


def _layer(
    config: TransformerConfig,
    make: Callable[..., nn.Module],
    number: int,
    tp_group: torch.distributed.ProcessGroup | None,
    wanted: Container[int],
) -> nn.Module:
    """Make a layer; one that is not wanted leaves nothing but the state of the random generator."""
    layer = make(config, layer_number=number, tp_group=tp_group)
    return layer if number in wanted else nn.Identity()


def _embedding(
    config: TransformerConfig,
    submodules: DecoderSubmodules,
    request: ModelRequest,
    tp_group: torch.distributed.ProcessGroup | None,
) -> LanguageModelEmbedding:
    init = NormalInit(config.embedding_init_method_std)

    def table(make: Callable[..., nn.Module], rows: int) -> nn.Module:
        return make(rows, config.hidden_size, config=config, init_method=init, tp_group=tp_group)

    words = table(submodules.word_embeddings, request.vocab_size)
    positions = submodules.position_embeddings
    return LanguageModelEmbedding(
        words,
        None if positions is None else table(positions, request.max_sequence_length),
        config.hidden_dropout,
        torch.float32 if config.fp32_residual_connection else None,
        _rounded(config.embedding_multiplier, torch_dtype(config.params_dtype)),
    )


def _rounded(number: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(number, dtype=dtype, device="cpu"))


def _output_layer(
    config: TransformerConfig,
    make: Callable[..., nn.Module] | None,
    request: ModelRequest,
    tp_group: torch.distributed.ProcessGroup | None,
) -> nn.Module | None:
    if make is None:
        return None
    return make(
        config.hidden_size,
        request.vocab_size,
        config=config,
        init_method=config.init_method,
        gather_output=True,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
        tp_comm_buffer_name=None,
        tp_group=tp_group,
    )


assemble_decoder = DecoderAssembly()

if TYPE_CHECKING:
    _builder: StagedModelBuilder = assemble_decoder
