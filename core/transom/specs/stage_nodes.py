"""Which places of a plan each pipeline stage has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from transom.errors import ParallelError
from transom.slots.embedding import EmbeddingRequest
from transom.slots.model import ModelRequest
from transom.specs.shapes import Shape, data_share, own_shapes, shapes_of
from transom.specs.world import pipelined
from transom.transformer.pipeline_layout import layers_of_chunks

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.specs.world import World
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["StageNodes", "rank_shapes", "stages_of"]


@dataclass(frozen=True)
class StageNodes:
    """The places of one pipeline stage.

    Args:
        number: of the stage, from 0.
        chunks: of each of its virtual stages, the first and the one after the last of its layers, from 0.
        layers: in order.
        ends: what stands before all layers or after them.
        copies: places of other stages of which it has a copy: an embedding table that is the output weight too.
        root: the model, where what is in no place of its own is on this stage; else `None`.
    """

    number: int
    chunks: tuple[tuple[int, int], ...]
    layers: tuple[Node, ...]
    ends: tuple[Node, ...] = ()
    copies: tuple[Node, ...] = ()
    root: Node | None = None

    def places(self) -> tuple[Node, ...]:
        """Give its layers and ends."""
        return self.layers + self.ends

    def rest(self, tp: int) -> dict[str, Shape]:
        """Give names and shapes of the parameters outside of layers.

        Args:
            tp: tensor-parallel ranks, of which one holds them.
        """
        named = dict(self._named(tp))
        return named if self.root is None else named | own_shapes(self.root, tp)

    def _named(self, tp: int) -> Iterator[tuple[str, Shape]]:
        for node in self.ends + self.copies:
            yield from shapes_of(node, tp)


def stages_of(plan: Plan, world: World) -> tuple[StageNodes, ...]:
    """Sort the places of a plan into pipeline stages.

    The first stage has what stands before the layers, the last what stands after.

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
    before, layers, after = _places(plan.root)
    chunks, last = _chunks(plan.config, world, len(layers)), world.pp - 1
    found = []
    for number in range(world.pp):
        own = tuple(chunks[number :: world.pp])
        inside = tuple(layer for begin, end in own for layer in layers[begin:end])
        ends = (before if number == 0 else []) + (after if number == last else [])
        copies = _shared(plan.root, before) if number == last != 0 else ()
        root = plan.root if number == last else None
        found.append(StageNodes(number, own, inside, tuple(ends), copies, root))
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


def _chunks(config: TransformerConfig, world: World, layers: int) -> list[tuple[int, int]]:
    """Give the first and the one after the last layer of each virtual stage, from 0."""
    if layers == config.num_layers:
        return list(pairwise(accumulate(layers_of_chunks(pipelined(config, world)), initial=0)))
    if world.pp > 1:  # an encoder's layers stand before the decoder's, and no config says how to cut both
        what = "the layers of an encoder-decoder are not cut into stages."
        raise ParallelError(what, asked_by="--world", hint="pp=1")
    return [(0, layers)]


def _shared(root: Node, before: list[Node]) -> tuple[Node, ...]:
    """Find the embedding table where it is the output weight too."""
    request = root.request
    is_shared = isinstance(request, ModelRequest) and request.share_embeddings_and_output_weights
    tables = [node for node in before if isinstance(node.request, EmbeddingRequest)]
    return tuple(tables[:1]) if is_shared else ()
