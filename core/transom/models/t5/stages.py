"""What a pipeline stage of T5 has, and how it is made; a model in one piece is the only stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from transom.errors import ConfigError
from transom.models.embedding import LanguageModelEmbedding
from transom.models.t5.lm_head import T5LMHead
from transom.models.t5.masks import LOOKING_BACK
from transom.models.t5.submodules import T5Options, T5Parts, disagreements, reference_parts
from transom.module_specs import layer_builders
from transom.transformer.initialization import NormalInit
from transom.transformer.position_bias import RelativePositionBias
from transom.transformer.sharding import ShardedStateDict
from transom.transformer.spec_utils import ModuleSpec
from transom.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["LayerSpec", "LayerSpecs", "Stage", "forget_second_names", "with_one_owner_each", "with_positions"]

LayerSpec: TypeAlias = ModuleSpec | str | Callable[..., Any]
"""A spec or a name, to be resolved; or a builder, called with ``config``, ``layer_number`` and ``tp_group``."""

LayerSpecs: TypeAlias = LayerSpec | Sequence[LayerSpec]
"""One for all layers alike, or one a layer."""

_POSITIONS = ("learned_absolute", "rope", "relative", "none")


def with_positions(
    config: TransformerConfig, position_embedding_type: str, rotary_percent: float, factor: float | None
) -> TransformerConfig:
    """Put together what the arguments of a model and its config say of positions: what is not the default counts.

    Raises:
        ConfigError: both say something, and it differs.
    """
    given = {
        "position_embedding_type": (position_embedding_type, "learned_absolute"),
        "rotary_percent": (rotary_percent, 1.0),
        "seq_len_interpolation_factor": (factor, None),
    }
    changes = {name: value for name, (value, default) in given.items() if value != default}
    for name, value in changes.items():
        said = getattr(config, name)
        if said not in (value, given[name][1]):
            raise _refusal(name, value, f"{name} is {value!r} in the arguments and {said!r} in the config.")
    return config.replace(**changes) if changes else config


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a pipeline stage of T5 has.

    Args:
        config: of the decoder.
        encoder_config: of the encoder.
        vocab_size: v.
        max_sequence_length: most tokens.
        pre_process: it has the embedding.
        post_process: it has the end.
        add_encoder: it has encoder layers.
        add_decoder: it has decoder layers.
        is_shared: the head's weight is the word embeddings.
        parallel_output: leave logits split over the tensor-parallel ranks.
        parts: builders of what stands around the layers.
        options: what is not the configs' to say.
        masks: kinds of mask that the layers are asked for.
        tp_group: tensor-parallel process group.
    """

    config: TransformerConfig
    encoder_config: TransformerConfig
    vocab_size: int
    max_sequence_length: int
    pre_process: bool
    post_process: bool
    add_encoder: bool
    add_decoder: bool
    is_shared: bool
    parallel_output: bool
    parts: T5Parts
    options: T5Options
    masks: frozenset[str]
    tp_group: ProcessGroup | None

    def check(self) -> None:
        """Refuse what cannot go together.

        Raises:
            ConfigError: the configs disagree, or the stage has nothing to do or nothing to start from.
        """
        for name, what in disagreements(self.config, self.encoder_config):
            raise _refusal(name, getattr(self.encoder_config, name), f"{what}.")
        if not (self.add_encoder or self.add_decoder):
            raise _refusal("add_decoder", False, "a stage without encoder and decoder does nothing.")
        if self.add_encoder and self.add_decoder and not self.pre_process:
            what = "a stage with the encoder's end and the decoder's beginning needs the embedding: pre_process."
            raise _refusal("pre_process", False, what)

    def embedding(self) -> LanguageModelEmbedding | None:
        """Make what encoder and decoder start with."""
        config, parts = self.config, self.parts
        if not self.pre_process:
            return None

        def table(make: Callable[..., nn.Module], rows: int) -> nn.Module:
            init = NormalInit(config.embedding_init_method_std)
            return make(rows, config.hidden_size, config=config, init_method=init, tp_group=self.tp_group)

        positions = parts.position_embeddings if config.position_embedding_type == "learned_absolute" else None
        return LanguageModelEmbedding(
            table(parts.word_embeddings, self.vocab_size),
            None if positions is None else table(positions, self.max_sequence_length),
            config.hidden_dropout,
            torch.float32 if config.fp32_residual_connection else None,
        )

    def encoder_bias(self) -> RelativePositionBias | None:
        """Make the bias that tells the encoder positions."""
        return self._bias(self.encoder_config, bidirectional=True) if self.add_encoder else None

    def decoder_bias(self) -> RelativePositionBias | None:
        """Make the bias that tells the decoder positions."""
        return self._bias(self.config, bidirectional=False) if self.add_decoder else None

    def encoder(self, specs: LayerSpecs, numbers: Sequence[int] | None) -> TransformerBlock | None:
        """Make the encoder's layers: a stage with decoder layers too has their end, which the decoder reads."""
        if not self.add_encoder:
            return None
        builders = _builders(specs, self.encoder_config, numbers, self.masks - LOOKING_BACK, is_decoder=False)
        submodules = TransformerBlockSubmodules(builders, self.parts.encoder_final_layernorm)
        return self._block(self.encoder_config, submodules, numbers, self.post_process or self.add_decoder)

    def decoder(self, specs: LayerSpecs, numbers: Sequence[int] | None) -> TransformerBlock | None:
        """Make the decoder's layers."""
        if not self.add_decoder:
            return None
        builders = _builders(specs, self.config, numbers, self.masks, is_decoder=True)
        submodules = TransformerBlockSubmodules(builders, self.parts.decoder_final_layernorm)
        return self._block(self.config, submodules, numbers, self.post_process)

    def head(self) -> T5LMHead | None:
        """Make what turns the decoder's hidden states to logits."""
        if not (self.post_process and self.add_decoder):
            return None
        make: Any = self.parts.output_layer
        return T5LMHead(
            self.config,
            self.parallel_output,
            self.vocab_size,
            self.pre_process,
            self.is_shared,
            output_layer=make,
            bias=self.is_shared and self.options.tied_bias,
            factor=self.config.hidden_size**-0.5 if self.options.scale_logits else 1.0,
            tp_group=self.tp_group,
        )

    def output_dropout(self) -> tuple[float, float]:
        """Give the probabilities with which what encoder and decoder give is dropped from."""
        drops = self.options.output_dropout
        return self.encoder_config.hidden_dropout * drops, self.config.hidden_dropout * drops

    def cache(self) -> Callable[..., Any]:
        """Give what makes a cache of what the decoder writes."""
        make = self.parts.kv_cache or reference_parts(self.config, self.vocab_size).kv_cache
        assert make is not None, "core has one"
        return partial(make, self.config)

    def _bias(self, config: TransformerConfig, *, bidirectional: bool) -> RelativePositionBias | None:
        if config.position_embedding_type != "relative":
            return None
        return RelativePositionBias(
            config.num_attention_heads,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            bidirectional=bidirectional,
            init_std=config.init_method_std,
            dtype=torch_dtype(config.params_dtype),
            tp_group=self.tp_group,
        )

    def _block(
        self,
        config: TransformerConfig,
        submodules: TransformerBlockSubmodules,
        numbers: Sequence[int] | None,
        post_process: bool,
    ) -> TransformerBlock:
        return TransformerBlock(
            config,
            submodules,
            pre_process=self.pre_process,
            post_process=post_process,
            first_layer_number=numbers[0] if numbers else 1,
            tp_group=self.tp_group,
        )


def _builders(
    specs: LayerSpecs,
    config: TransformerConfig,
    numbers: Sequence[int] | None,
    masks: Iterable[str],
    *,
    is_decoder: bool,
) -> list[Callable[..., Any]]:
    """Give a builder a layer; those that are specs are resolved, alike ones together."""
    wanted = range(1, config.num_layers + 1) if numbers is None else numbers

    def resolve(spec: LayerSpec, which: Iterable[int]) -> list[Callable[..., Any]]:
        return layer_builders(spec, config, which, cross_attention=is_decoder, masks=masks)

    if isinstance(specs, ModuleSpec | str | type):
        return resolve(specs, wanted)
    if callable(specs):
        return [specs] * len(wanted)
    if len(specs) != len(wanted):
        side = "decoder" if is_decoder else "encoder"
        what = f"{len(specs)} {side} layer specs are given for {len(wanted)} layers."
        raise _refusal(f"transformer_{side}_layer_spec", len(specs), what)
    return [
        resolve(each, [number])[0] if isinstance(each, ModuleSpec | str | type) else each
        for each, number in zip(specs, wanted, strict=True)
    ]


def _refusal(field: str, value: object, what: str) -> ConfigError:
    return ConfigError(
        what, asked_by=f"T5Model({field}=...)", field=field, value=value, path=field, file=None, line=None
    )


_SECOND_NAMES: Mapping[str, str] = {
    "position_embeddings.weight": "embedding.position_embeddings.weight",
    "output_layer.weight": "lm_head.output_layer.weight",
    "output_layer.bias": "lm_head.output_layer.bias",
}
"""Names under which Megatron-core's T5 keeps a tensor once more."""


def forget_second_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take out of a state, before it is loaded, what is in it twice: the same tensor under another name."""
    for second, name in _SECOND_NAMES.items():
        twice, once = state.get(prefix + second), state.get(prefix + name)
        if twice is not None and once is not None and (twice is once or torch.equal(twice, once)):
            del state[prefix + second]


def with_one_owner_each(
    state: ShardedStateDict, prefix: str, *, has_encoder: bool, has_embedding: bool, is_tied: bool
) -> ShardedStateDict:
    """Mark what several stages hold as replicas, on all stages but one.

    The word and position embeddings belong to the encoder's first stage, the biases of positions to the first stage of
    encoder and decoder each. A tied head that holds a copy of the word embeddings is a replica of them.

    Args:
        state: of this stage.
        prefix: of all its names.
        has_encoder: this stage has encoder layers.
        has_embedding: this stage has the embedding.
        is_tied: the head's weight is the word embeddings.

    Returns:
        the same shards, with their keys and replicas.
    """
    replicas = [] if has_encoder else [f"{prefix}embedding."]
    if not has_embedding:
        replicas += [f"{prefix}encoder_relative_pos_emb.", f"{prefix}decoder_relative_pos_emb."]
    head, words = f"{prefix}lm_head.output_layer.weight", f"{prefix}embedding.word_embeddings.weight"
    found: ShardedStateDict = {}
    for name, shard in state.items():
        is_copy = is_tied and name == head
        key = words if is_copy else shard.key
        replica = (*shard.replica_id, 1) if is_copy or name.startswith(tuple(replicas)) else shard.replica_id
        found[name] = replace(shard, key=key, replica_id=replica)
    return found
