"""What T5 is put together from, beside its layers, and what of it is not the config's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from transom.slots.kv_cache import KVCacheRequest
from transom.slots.loss import LossRequest
from transom.slots.request import BuildContext
from transom.transformer.embedding import VocabEmbedding
from transom.transformer.kv_cache import build_static_kv_cache
from transom.transformer.linear import ColumnLinear
from transom.transformer.loss import CrossEntropy
from transom.transformer.norm import TorchNorm
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["T5Options", "T5Parts", "T5Submodules", "disagreements", "reference_parts"]


@dataclass(frozen=True, kw_only=True)
class T5Options:
    """How published T5s differ beside their configs.

    Args:
        scale_logits: the decoder's hidden states are divided by √h before they become logits, as in T5 1.0.
        tied_bias: logits that are made with the embedding table have a bias.
        output_dropout: what encoder and decoder give is dropped from too, with their ``hidden_dropout``.
    """

    scale_logits: bool = False
    tied_bias: bool = True
    output_dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class T5Parts:
    """The builders of what stands around the layers.

    Args:
        word_embeddings: the table of token vectors, which encoder and decoder share.
        encoder_final_layernorm: after the encoder's last layer.
        decoder_final_layernorm: after the decoder's last layer.
        loss: cross-entropy of tokens, its request bound.
        position_embeddings: the table of learned positions, for ``position_embedding_type: learned_absolute``.
        output_layer: to logits; `None` = the embedding table.
        kv_cache: of what the decoder writes, its request bound; made when caches are set up.
    """

    word_embeddings: Callable[..., nn.Module]
    encoder_final_layernorm: Callable[..., nn.Module]
    decoder_final_layernorm: Callable[..., nn.Module]
    loss: Callable[..., Any]
    position_embeddings: Callable[..., nn.Module] | None = None
    output_layer: Callable[..., nn.Module] | None = None
    kv_cache: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class T5Submodules(T5Parts):
    """The builders of all parts.

    Args:
        encoder_layers: one builder a layer, with submodules bound.
        decoder_layers: likewise; with cross-attention.
    """

    encoder_layers: Sequence[Callable[..., Any]]
    decoder_layers: Sequence[Callable[..., Any]]


def reference_parts(config: TransformerConfig, vocab_size: int) -> T5Parts:
    """Give core's own builders of what stands around the layers, for a T5 that no plan was made for.

    Args:
        config: the decoder's.
        vocab_size: v.
    """
    context = BuildContext(dtype=config.params_dtype)
    windows = tuple(config.window_of(number) for number in range(1, config.num_layers + 1))
    cache = KVCacheRequest(
        context=BuildContext(dtype=config.params_dtype, mode="infer"),
        windows=windows,
        num_query_groups=config.num_query_groups,
        head_size=config.kv_channels,
        value_head_size=config.kv_channels,
    )
    loss = LossRequest(context=context, vocab_size=vocab_size, z_loss=config.z_loss)
    return T5Parts(
        word_embeddings=VocabEmbedding,
        position_embeddings=VocabEmbedding,
        encoder_final_layernorm=TorchNorm,
        decoder_final_layernorm=TorchNorm,
        output_layer=ColumnLinear,
        loss=partial(CrossEntropy, request=loss),
        kv_cache=partial(build_static_kv_cache, request=cache),
    )


_ALIKE = (
    "hidden_size",
    "params_dtype",
    "position_embedding_type",
    "tensor_model_parallel_size",
    "sequence_parallel",
)


def disagreements(config: TransformerConfig, encoder_config: TransformerConfig) -> Iterator[tuple[str, str]]:
    """Say where the configs of decoder and encoder cannot go together: the encoder's field, and what is wrong."""
    for name in _ALIKE:
        wanted, found = getattr(config, name), getattr(encoder_config, name)
        if wanted != found:
            yield name, f"the encoder's {name} is {found!r} and the decoder's {wanted!r}"
    stages = encoder_config.pipeline_model_parallel_size
    if stages not in (1, config.pipeline_model_parallel_size):
        wanted = config.pipeline_model_parallel_size
        yield "pipeline_model_parallel_size", f"the encoder's number of stages is {stages} and the whole's {wanted}"
    if config.position_embedding_type == "alibi":
        yield "position_embedding_type", "alibi is for decoder-only models"
    for each in (config, encoder_config):
        for name, none in (("embedding_multiplier", 1.0), ("final_logit_softcapping", None)):
            if getattr(each, name) != none:
                yield name, f"{name} is {getattr(each, name)!r}, which T5 has no place for"
    if config.final_logit_softcapping is not None:
        yield "final_logit_softcapping", "final_logit_softcapping is for decoder-only models"
    if any(each.embedding_multiplier != 1.0 for each in (config, encoder_config)):
        yield "embedding_multiplier", "embedding_multiplier is for decoder-only models"
