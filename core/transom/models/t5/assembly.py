"""From a spec's parts to a T5: what `model: t5` builds."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from transom.errors import ParallelError
from transom.models.t5.masks import LOOKING_BACK
from transom.models.t5.submodules import T5Options, T5Submodules, disagreements
from transom.models.t5.t5_model import T5Model
from transom.models.t5.t5_stage import T5Stage
from transom.transformer import parts
from transom.transformer.encoder_decoder_layout import encoder_decoder_stages

if TYPE_CHECKING:
    import torch

    from transom.slots import Part, Parts
    from transom.slots.model import ModelRequest, StagedModelBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["T5Assembly", "assemble_t5"]


class T5Assembly:
    """Makes a `T5Model` from a spec's parts; registered as ``t5`` in the slot ``model``."""

    Submodules = T5Submodules
    Options = T5Options

    @staticmethod
    def supports(request: ModelRequest) -> Sequence[str]:
        """Say what a T5 cannot be."""
        encoder_config = request.encoder_config or request.config
        reasons = [what for _, what in disagreements(request.config, encoder_config)]
        if request.config.pipeline_model_parallel_size > 1:
            try:
                encoder_decoder_stages(request.config, encoder_config.num_layers)
            except ParallelError as error:
                reasons.append(error.what.rstrip("."))
        return reasons

    @staticmethod
    def parts(request: ModelRequest) -> Parts:
        """Name the places inside a T5 and what each must serve."""
        config, hidden, vocab = request.config, request.config.hidden_size, request.vocab_size
        encoder = replace(request, config=request.encoder_config or config, masks=request.masks - LOOKING_BACK)
        places: dict[str, Part | Sequence[Part]] = {
            "word_embeddings": parts.embedding(request, vocab, hidden, path="embedding.word_embeddings"),
        }
        if config.position_embedding_type == "learned_absolute":
            places["position_embeddings"] = parts.embedding(
                request, request.max_sequence_length, hidden, path="embedding.position_embeddings"
            )
        places["encoder_layers"] = [
            parts.layer(encoder, number, path=f"encoder.layers.{number - 1}")
            for number in range(1, encoder.config.num_layers + 1)
        ]
        places["encoder_final_layernorm"] = parts.norm(encoder, hidden, path="encoder.final_layernorm")
        places["decoder_layers"] = [
            parts.layer(request, number, cross_attention=True, path=f"decoder.layers.{number - 1}")
            for number in range(1, config.num_layers + 1)
        ]
        places["decoder_final_layernorm"] = parts.norm(request, hidden, path="decoder.final_layernorm")
        if not request.share_embeddings_and_output_weights:
            places["output_layer"] = parts.column_linear(
                request, hidden, vocab, bias=False, path="lm_head.output_layer"
            )
        places["loss"] = parts.loss(request, vocab)
        places["kv_cache"] = parts.kv_cache(request)
        return places

    @staticmethod
    def own_parameters(request: ModelRequest, options: T5Options | None) -> int:
        """Count what is in no place: the biases of positions, and that of logits made with the embedding table."""
        config, shared = request.config, request.share_embeddings_and_output_weights
        bias = request.vocab_size if shared and (options or T5Options()).tied_bias else 0
        if config.position_embedding_type != "relative":
            return bias
        stacks = (config, request.encoder_config or config)
        return bias + sum(each.relative_attention_num_buckets * each.num_attention_heads for each in stacks)

    def __call__(
        self,
        config: TransformerConfig,
        submodules: T5Submodules,
        *,
        request: ModelRequest,
        tp_group: torch.distributed.ProcessGroup | None = None,
        options: T5Options | None = None,
    ) -> T5Model:
        """Make every part, in the order in which tokens meet them."""
        return _model(config, submodules, request, tp_group, options)

    @staticmethod
    def stages(
        config: TransformerConfig,
        submodules: T5Submodules,
        *,
        request: ModelRequest,
        place: int,
        tp_group: torch.distributed.ProcessGroup | None = None,
        options: T5Options | None = None,
    ) -> list[T5Stage]:
        """Make the stage of one rank of a pipeline; of the other layers, one at a time is made and dropped."""
        cut = encoder_decoder_stages(config, (request.encoder_config or config).num_layers)[place]
        encoder, decoder = ((), cut.layer_numbers) if cut.is_decoder else (cut.layer_numbers, ())
        parts = replace(
            submodules,
            encoder_layers=_only(encoder, submodules.encoder_layers),
            decoder_layers=_only(decoder, submodules.decoder_layers),
        )
        return [T5Stage(_model(config, parts, request, tp_group, options), cut)]


def _model(
    config: TransformerConfig,
    submodules: T5Submodules,
    request: ModelRequest,
    tp_group: torch.distributed.ProcessGroup | None,
    options: T5Options | None,
) -> T5Model:
    return T5Model(
        config,
        request.encoder_config or config,
        submodules.encoder_layers,
        submodules.decoder_layers,
        request.vocab_size,
        request.max_sequence_length,
        parallel_output=False,
        share_embeddings_and_output_weights=request.share_embeddings_and_output_weights,
        submodules=submodules,
        options=options,
        masks=request.masks,
        tp_group=tp_group,
    )


def _only(wanted: Container[int], builders: Sequence[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Let builders of layers that are not wanted leave nothing but the state of the random generator."""
    return [make if number in wanted else partial(_dropped, make) for number, make in enumerate(builders, 1)]


def _dropped(make: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    make(*args, **kwargs)
    return nn.Identity()


assemble_t5 = T5Assembly()

if TYPE_CHECKING:
    _builder: StagedModelBuilder = assemble_t5
