"""A stack of layers, with its final norm, recompute and key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from transom.errors import ConfigError, InputError
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.direct_attributes import submodule
from transom.transformer.pipeline_layout import stage_of
from transom.transformer.recompute import LayerRecompute, recomputed
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.kv_cache import CacheStep, KVCache
    from transom.slots.layer import Layer
    from transom.slots.norm import NormBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["BoundLayerBuilder", "TransformerBlock", "TransformerBlockSubmodules", "TransformerStack"]

BoundLayerBuilder = Callable[..., "Layer"]
"""A `transom.slots.layer.LayerBuilder` to which the submodules are already bound."""


class TransformerStack(ShardedModule):
    """Layers that run one after another, ``layers.0 ...``, and a ``final_layernorm`` that `run_layers` leaves to you.

    Args:
        layers: modules that satisfy `transom.slots.layer.Layer`.
        final_layernorm: a norm, or `None`.
        recompute: which layers are recomputed in the backward pass; `None` = none. It may be set later.
    """

    layers: nn.ModuleList = submodule()
    final_layernorm: nn.Module | None = submodule()

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        final_layernorm: nn.Module | None = None,
        recompute: LayerRecompute | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_layernorm = final_layernorm
        self.recompute = recompute

    def run_layers(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: AttentionMask | None = None,
        collect: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Run all layers, without the final norm.

        Args:
            hidden_states: ``[b, s, h]``.
            mask: of self-attention; `None` = everyone to everyone. With a cache, key j is the one at position j.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. A cache needs them.
            cache: of the whole stack, with an entry a layer; nothing is recomputed then.
            context: ``[b, t, h]``, what cross-attention reads.
            context_mask: of cross-attention.
            collect: whose keys are indices of layers; each value becomes the hidden states ``[b, s, h]`` after it.

        Returns:
            the hidden states after the last layer ``[b, s, h]``.

        Raises:
            CacheError: the step does not fit into the cache; nothing was written.
        """
        step = None if cache is None else cache.begin(positions, hidden_states.shape[0])
        arguments: dict[str, Any] = {
            "mask": AttentionMask() if mask is None and step is not None else mask,
            "positions": positions,
            "context_mask": context_mask,
            "step": step,
            "wanted": () if collect is None else collect.keys(),
        }
        kept: list[Tensor] = []
        for chunk, again in self._chunks(cache):
            if again:
                hidden_states, context, *states = recomputed(self._run, chunk, hidden_states, context, **arguments)
            else:
                hidden_states, context, *states = self._run(chunk, hidden_states, context, **arguments)
            kept += states
        if step is not None:
            step.commit()
        if collect is not None:
            collect.update(zip(sorted(collect), kept, strict=True))
        return hidden_states

    def _run(
        self,
        chunk: range,
        hidden: Tensor,
        context: Tensor | None,
        *,
        mask: AttentionMask | None,
        positions: Tensor | None,
        context_mask: AttentionMask | None,
        step: CacheStep | None,
        wanted: Collection[int],
    ) -> tuple[Any, ...]:
        """Run some of the layers; return hidden states, context, and the hidden states after each wanted layer."""
        kept: list[Tensor] = []
        for index, layer in islice(enumerate(self.layers), chunk.start, chunk.stop):
            hidden, context = layer(
                hidden,
                mask=mask if step is None else step.mask(mask, index),
                context=context,
                context_mask=context_mask,
                positions=positions,
                cache=None if step is None else step.layer(index),
            )
            if index in wanted:
                kept.append(hidden)
        return hidden, context, *kept

    def _chunks(self, cache: KVCache | None) -> Iterable[tuple[range, bool]]:
        if self.recompute is None or cache is not None or not self.training or not torch.is_grad_enabled():
            return ((range(len(self.layers)), False),)
        return self.recompute.chunks(len(self.layers))


@dataclass(frozen=True)
class TransformerBlockSubmodules:
    """Builders of a block's parts.

    Args:
        layers: one builder for all layers alike, or one a layer.
        final_layernorm: after the last layer; `None` = none.
    """

    layers: BoundLayerBuilder | Sequence[BoundLayerBuilder]
    final_layernorm: NormBuilder | None = None


@final
class TransformerBlock(TransformerStack):
    """A stack of layers from hidden states to hidden states, as a model or a pipeline stage of one.

    Args:
        config: number of layers, norm, recompute.
        submodules: builders of the layers and the final norm.
        post_layer_norm: have the final norm, if there is a builder for it.
        pre_process: this is the first stage, which is called with hidden states; others take what `set_input_tensor`
            gave them.
        post_process: this is the last stage, which has the final norm.
        first_layer_number: of this stage, counted from 1 over the whole model.
        tp_group: tensor-parallel process group.

    Raises:
        ConfigError: there are no layers.

    Example:
        >>> from transom import TransformerConfig
        >>> from transom.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
        >>> config = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
        >>> def identity(config, layer_number, tp_group):
        ...     return TransformerLayer(config, TransformerLayerSubmodules(), layer_number, tp_group=tp_group)
        >>> block = TransformerBlock(config, TransformerBlockSubmodules(layers=identity))
        >>> len(block.layers), block(torch.ones(1, 3, 8)).shape
        (2, torch.Size([1, 3, 8]))
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerBlockSubmodules,
        *,
        post_layer_norm: bool = True,
        pre_process: bool = True,
        post_process: bool = True,
        first_layer_number: int = 1,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        builders = _builders(config, submodules)
        if not builders and pre_process and post_process:
            raise _wrong_layers("a block of no layers cannot be built.", "give at least one layer", 0)
        layers: list[Any] = [
            build(config, layer_number=number, tp_group=tp_group)
            for number, build in enumerate(builders, first_layer_number)
        ]
        norm: Any = None
        if post_layer_norm and post_process and submodules.final_layernorm is not None:
            norm = submodules.final_layernorm(config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
        super().__init__(layers, final_layernorm=norm, recompute=LayerRecompute.of(config))
        self.config = config
        self.tensor_parallel_rank = None if tp_group is None else tp_group.rank()
        self.pre_process, self.post_process = pre_process, post_process
        self.first_layer_number = first_layer_number
        self.input_tensor: Tensor | None = None

    @classmethod
    def of_stage(
        cls,
        config: TransformerConfig,
        submodules: TransformerBlockSubmodules,
        stage: int,
        virtual_stage: int | None = None,
        *,
        post_layer_norm: bool = True,
        tp_group: ProcessGroup | None = None,
    ) -> TransformerBlock:
        """Make the part of a model's block that a pipeline stage has, as the model's config splits it.

        Args:
            config: the model's; see `transom.transformer.pipeline_layout`.
            submodules: builders of all the model's layers, of which those of the stage are called, and of its norm.
            stage: rank in the pipeline, from 0.
            virtual_stage: from 0; `None` only where there are no virtual stages.
            post_layer_norm: as in the constructor.
            tp_group: tensor-parallel process group.

        Returns:
            the block, which may have no layers; `pre_process` and `post_process` say whether it begins or ends the
            model.

        Raises:
            ParallelError: there is no such stage or virtual stage.
            ConfigError: there is not one builder for each of the model's layers.
        """
        part, builders = stage_of(config, stage, virtual_stage), _builders(config, submodules)
        if len(builders) != config.num_layers:
            what = f"num_layers is {config.num_layers} and there are {len(builders)} builders of layers."
            raise _wrong_layers(what, "give those of the whole model: of_stage takes the stage's", len(builders))
        return cls(
            config,
            replace(submodules, layers=[builders[number - 1] for number in part.layer_numbers]),
            post_layer_norm=post_layer_norm,
            pre_process=part.pre_process,
            post_process=part.post_process,
            first_layer_number=part.first_layer_number,
            tp_group=tp_group,
        )

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Give the hidden states ``[b, s, h]`` of the stage before, which the next call starts from."""
        self.input_tensor = input_tensor

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the state as `transom.transformer.sharding` does; keys number the layers over the whole model."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        layers = f"{prefix}layers."

        def over_all_stages(key: str) -> str:
            index, dot, rest = key.removeprefix(layers).partition(".")
            return f"{layers}{int(index) + self.first_layer_number - 1}{dot}{rest}" if key.startswith(layers) else key

        return {name: replace(shard, key=over_all_stages(shard.key)) for name, shard in state.items()}

    def forward(
        self,
        hidden_states: Tensor | None,
        *,
        mask: AttentionMask | None = None,
        context: Tensor | None = None,
        context_mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        collect: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Run the layers and the final norm.

        Args:
            hidden_states: ``[b, s, h]``; not used by a stage that is not the first.
            mask: of self-attention; `None` = everyone to everyone.
            context: ``[b, t, h]``, what cross-attention reads.
            context_mask: of cross-attention.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            cache: of the whole block.
            collect: as in `run_layers`.

        Returns:
            ``[b, s, h]``.

        Raises:
            InputError: there are no hidden states to start from.
        """
        start = hidden_states if self.pre_process else self.input_tensor
        if start is None:
            raise InputError(
                "the block has no hidden states to start from.",
                hint="pass hidden_states" if self.pre_process else "call set_input_tensor first",
            )
        hidden = self.run_layers(
            start,
            mask=mask,
            context=context,
            context_mask=context_mask,
            positions=positions,
            cache=cache,
            collect=collect,
        )
        return hidden if self.final_layernorm is None else self.final_layernorm(hidden)


def _builders(config: TransformerConfig, submodules: TransformerBlockSubmodules) -> list[BoundLayerBuilder]:
    layers = submodules.layers
    return [layers] * config.num_layers if callable(layers) else list(layers)


def _wrong_layers(what: str, hint: str, number: int) -> ConfigError:
    return ConfigError(what, hint=hint, field="layers", value=number, path="layers", file=None, line=None)
