"""Which places of a model run forward twice, because what they make is not kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from transom.slots.layer import LayerRequest
from transom.transformer.recompute import LayerRecompute

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.stage_nodes import StageNodes

__all__ = ["recomputed_places"]


def recomputed_places(nodes: StageNodes) -> frozenset[str]:
    """Give the paths of the places of a stage that run again in the backward pass.

    Torch stops as soon as everything is there that the backward pass reads: the last row linear of what is recomputed
    together does not run again, unless dropout or a norm reads what it makes.

    Args:
        nodes: of the stage.

    Example:
        >>> from transom import load_spec, plan
        >>> from transom.specs.stage_nodes import stages_of
        >>> from transom.specs.world import World
        >>> spec = load_spec("tiny-llama").to_dict()
        >>> spec["config"] |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
        >>> (stage,) = stages_of(plan(spec), World())
        >>> sorted(recomputed_places(stage))[0]
        'layers.0.self_attention.core_attention'
    """
    return frozenset(path for stack in _stacks(nodes) for path in _of_stack(stack))


def _stacks(nodes: StageNodes) -> Iterator[list[Node]]:
    """Yield layers that run one after another: of a virtual stage, of an encoder or a decoder."""
    start = 0
    for first, last in nodes.chunks:
        layers = nodes.layers[start : start + last - first]
        start += last - first
        for _, stack in groupby(layers, key=lambda layer: layer.path.rpartition(".")[0]):
            yield list(stack)


def _of_stack(layers: Sequence[Node]) -> Iterator[str]:
    request = layers[0].request
    assert isinstance(request, LayerRequest), "the slot's"
    recompute = LayerRecompute.of(request.config)
    if recompute is None:
        for layer in layers:
            yield from _selected(layer, request.config.recompute_modules)
        return
    for chunk, again in recompute.chunks(len(layers)):
        if again:
            inside = [node for index in chunk for node in layers[index].nodes()]
            is_read = request.config.hidden_dropout > 0 or request.config.post_mlp_layernorm
            yield from _but_last_row(inside, is_read=is_read)


def _selected(layer: Node, modules: Sequence[str]) -> Iterator[str]:
    for node in layer.nodes():
        if node.slot == "core_attention" and "core_attn" in modules:
            yield node.path
        if node.slot == "mlp" and "mlp" in modules:
            yield from _but_last_row(list(node.nodes()), is_read=False)


def _but_last_row(nodes: Sequence[Node], *, is_read: bool) -> Iterator[str]:
    rows = [node.path for node in nodes if node.slot == "row_linear"]
    dropped = rows[-1:] if not is_read else []
    yield from (node.path for node in nodes if node.path not in dropped)
