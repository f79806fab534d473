"""Which places of a plan each pipeline stage has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from transom.slots.embedding import EmbeddingRequest
from transom.slots.model import ModelRequest
from transom.specs.shapes import Shape, data_share, shapes_of
from transom.specs.totals import own_cost
from transom.specs.world import pipelined
from transom.transformer.encoder_decoder_layout import encoder_decoder_stages
from transom.transformer.pipeline_layout import layers_of_chunks

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.specs.world import World
    from transom.transformer.encoder_decoder_layout import EncoderDecoderStage
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["StageNodes", "encoder_layers_of", "rank_shapes", "stages_of"]


@dataclass(frozen=True)
class StageNodes:
    """The places of one pipeline stage.

    Args:
        number: of the stage, from 0.
        chunks: of each of its virtual stages, the first and the one after the last of its layers, from 0.
        layers: in order.
        ends: what stands before all layers or after them.
        copies: places of other stages of which it has a copy: an embedding table that is the output weight too, or
            that both encoder and decoder begin with.
        root: the model, where what it computes in no place of its own is on this stage; else `None`.
        own: how many of the model's own parameters, which are in no place, are on this stage.
        biases: how many of these are biases of positions, of which all stages of an encoder, or of a decoder, have a
            copy.
        receives: paths of those whose hidden states come from the stage before: ``"encoder."``, or what is written.
        sends: likewise, of those that go on to the next.
        embeds: likewise, of those that begin here: whose ids are looked up.
    """

    number: int
    chunks: tuple[tuple[int, int], ...]
    layers: tuple[Node, ...]
    ends: tuple[Node, ...] = ()
    copies: tuple[Node, ...] = ()
    root: Node | None = None
    own: int = 0
    biases: int = 0
    receives: tuple[str, ...] = ("",)
    sends: tuple[str, ...] = ("",)
    embeds: tuple[str, ...] = ()

    def places(self) -> tuple[Node, ...]:
        """Give its layers and ends."""
        return self.layers + self.ends

    def rest(self, tp: int) -> dict[str, Shape]:
        """Give names and shapes of the parameters outside of layers.

        Args:
            tp: tensor-parallel ranks, of which one holds them.
        """
        named = dict(self._named(tp))
        return named | {"own parameters": (self.own // tp,)} if self.own else named

    def _named(self, tp: int) -> Iterator[tuple[str, Shape]]:
        for node in self.ends + self.copies:
            yield from shapes_of(node, tp)


def stages_of(plan: Plan, world: World) -> tuple[StageNodes, ...]:
    """Sort the places of a plan into pipeline stages.

    The first stage has what stands before the layers, the last what stands after. An encoder's and a decoder's stages
    each have what stands before and after their own layers.

    Args:
        plan: of the whole model.
        world: how many stages there are.

    Returns:
        one entry a stage.

    Raises:
        ParallelError: the layers cannot be cut like this.

    Example:
        >>> from transom import plan
        >>> from transom.specs.world import World
        >>> [stage.chunks for stage in stages_of(plan("tiny-llama"), World(pp=2))]
        [((0, 2),), ((2, 4),)]
    """
    encoder_layers = encoder_layers_of(plan.root)
    if encoder_layers and world.pp > 1:
        config = pipelined(plan.config, world, encoder_layers)
        cuts = encoder_decoder_stages(config, encoder_layers)
        return tuple(_of_both(plan, number, cut, encoder_layers) for number, cut in enumerate(cuts))
    before, layers, after = _places(plan.root)
    chunks, last = _chunks(plan.config, world, len(layers)), world.pp - 1
    own = own_cost(plan.root, 1).parameters
    found = []
    for number in range(world.pp):
        part = tuple(chunks[number :: world.pp])
        inside = tuple(layer for begin, end in part for layer in layers[begin:end])
        ends = (before if number == 0 else []) + (after if number == last else [])
        copies = _shared(plan.root, before) if number == last != 0 else ()
        root = plan.root if number == last else None
        embeds = () if number else (_BOTH if encoder_layers else ("",))
        rest = own if number == last else 0
        found.append(StageNodes(number, part, inside, tuple(ends), copies, root, rest, embeds=embeds))
    return tuple(found)


def rank_shapes(plan: Plan, world: World) -> tuple[dict[str, dict[str, list[int]]], ...]:
    """Give the shapes of the parameters of one rank of every pipeline stage, as plain data.

    Args:
        plan: of the whole model.
        world: how many ranks there are.

    Returns:
        by the parameter's name, ``"computes_with"``, what a tensor-parallel rank has of it, and ``"holds"``, what is
        left of that when the data-parallel ranks split it (``zero=3``); one entry a stage.

    Raises:
        ParallelError: the layers cannot be cut like this.

    Example:
        >>> from transom import plan
        >>> from transom.specs.world import World
        >>> (stage,) = rank_shapes(plan("tiny-llama"), World(tp=2, dp=2))
        >>> stage["layers.0.self_attention.linear_proj.weight"]
        {'computes_with': [192, 96], 'holds': [96, 96]}
    """
    found = []
    for nodes in stages_of(plan, world):
        shapes = nodes.rest(world.tp)
        for layer in nodes.layers:
            shapes |= dict(shapes_of(layer, world.tp))
        ranks = world.data if world.zero == 3 else 1
        found.append(
            {
                name: {"computes_with": list(shape), "holds": list(data_share(shape, ranks))}
                for name, shape in shapes.items()
            }
        )
    return tuple(found)


def _places(root: Node) -> tuple[list[Node], list[Node], list[Node]]:
    """Sort the model's parts: what stands before the layers, the layers, what stands after."""
    before: list[Node] = []
    layers: list[Node] = []
    after: list[Node] = []
    for part in root.parts.values():
        nodes = list(part) if isinstance(part, tuple) else [part]
        if nodes and nodes[0].slot == "layer":
            layers += nodes
        else:
            (after if layers else before).extend(nodes)
    return before, layers, after


def encoder_layers_of(root: Node) -> int:
    """Count the layers of an encoder; 0 where there is no encoder beside a decoder."""
    return sum(layer.path.startswith("encoder.") for layer in _places(root)[1])


_BOTH = ("decoder.", "encoder.")


def _of_both(plan: Plan, number: int, cut: EncoderDecoderStage, encoder_layers: int) -> StageNodes:
    """Say what a stage of an encoder or of a decoder has."""
    before, layers, after = _places(plan.root)
    first = cut.first_layer_number - 1 + (encoder_layers if cut.is_decoder else 0)
    is_last, side = cut.is_decoder and cut.ends, "decoder." if cut.is_decoder else "encoder."
    ends = [*before] if number == 0 else []
    ends += [node for node in after if cut.ends and node.path.startswith(side)]
    ends += [node for node in after if is_last and not node.path.startswith(("encoder.", "decoder."))]
    begins = tuple(before) if cut.is_decoder and cut.begins else ()
    return StageNodes(
        number,
        ((first, first + cut.num_layers),),
        tuple(layers[first : first + cut.num_layers]),
        tuple(ends),
        begins or (_shared(plan.root, before) if is_last else ()),
        plan.root if is_last else None,
        *_own_of_both(plan, cut),
        receives=_BOTH if cut.is_decoder and not cut.begins else ("encoder.",),
        sends=_BOTH if cut.is_decoder else ("encoder.",),
        embeds=(side,) if cut.begins else (),
    )


def _own_of_both(plan: Plan, cut: EncoderDecoderStage) -> tuple[int, int]:
    """Count a stage's own parameters, biases of positions and at the end all the others; and the biases alone."""
    request = plan.root.request
    encoder = getattr(request, "encoder_config", None) or plan.config
    written, read = (_position_biases(config) for config in (plan.config, encoder))
    others = own_cost(plan.root, 1).parameters - read - written
    biases = written if cut.is_decoder else read
    return biases + (others if cut.is_decoder and cut.ends else 0), biases


def _position_biases(config: TransformerConfig) -> int:
    is_relative = config.position_embedding_type == "relative"
    return config.relative_attention_num_buckets * config.num_attention_heads if is_relative else 0


def _chunks(config: TransformerConfig, world: World, layers: int) -> list[tuple[int, int]]:
    """Give the first and the one after the last layer of each virtual stage, from 0."""
    if world.pp == 1 and layers != config.num_layers:  # an encoder's stand before the decoder's
        return [(0, layers)]
    return list(pairwise(accumulate(layers_of_chunks(pipelined(config, world)), initial=0)))


def _shared(root: Node, before: list[Node]) -> tuple[Node, ...]:
    """Find the embedding table where it is the output weight too."""
    request = root.request
    is_shared = isinstance(request, ModelRequest) and request.share_embeddings_and_output_weights
    tables = [node for node in before if isinstance(node.request, EmbeddingRequest)]
    return tuple(tables[:1]) if is_shared else ()
