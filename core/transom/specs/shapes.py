"""Shapes of the parameters that a rank holds: arithmetic on a plan's requests, nothing is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.norm import NormRequest
from transom.specs.totals import own_cost

if TYPE_CHECKING:
    from transom.specs.node import Node

__all__ = ["Shape", "data_share", "gathered_numbers", "own_shapes", "shapes_of"]

Shape = tuple[int, ...]


def own_shapes(node: Node, tp: int = 1) -> dict[str, Shape]:
    """Give the shapes of a place's own parameters, without what is inside it.

    Matrices that are stacked in one (gate and up) rest with a dimension of their own where they are split. What no
    request tells (an architecture's own numbers) is one dimension, divided over the ranks.

    Args:
        node: of a plan.
        tp: tensor-parallel ranks; everything divides over them.

    Returns:
        what one tensor-parallel rank holds, by the parameter's name.
    """
    request = node.request
    if node.within is not None and node.resolution.slot != "norm_linear":
        return {}  # they are counted where the norm is
    if isinstance(request, LinearRequest):
        return _linear(request, tp, is_row=node.slot == "row_linear")
    if isinstance(request, EmbeddingRequest):
        return {"weight": (request.num_embeddings // tp, request.embedding_dim)}
    if isinstance(request, NormRequest):
        names = ("weight", "bias") if "layernorm" in request.features else ("weight",)
        return dict.fromkeys(names, (request.hidden_size,))
    others = own_cost(node, 1).parameters
    name = "sinks" if isinstance(request, CoreAttentionRequest) else "own parameters"
    return {name: (others // tp,)} if others else {}


def _linear(request: LinearRequest, tp: int, *, is_row: bool) -> dict[str, Shape]:
    rows, columns = request.output_size, request.input_size
    if is_row:
        shapes = {"weight": (rows, columns // tp), "bias": (rows,)}
    elif request.stride > 1 and tp > 1:
        apart = (request.stride, rows // request.stride // tp)
        shapes = {"weight": (*apart, columns), "bias": apart}
    else:
        shapes = {"weight": (rows // tp, columns), "bias": (rows // tp,)}
    return shapes if request.bias else {"weight": shapes["weight"]}


def shapes_of(node: Node, tp: int = 1) -> Iterator[tuple[str, Shape]]:
    """Yield the names and shapes of all parameters of a place and of what is inside it, as `own_shapes` does.

    Example:
        >>> from transom import plan
        >>> layer = plan("tiny-llama").root.parts["layers"][0]
        >>> dict(shapes_of(layer, tp=2))["layers.0.mlp.linear_fc1.weight"]
        (2, 256, 192)
    """
    for name, shape in own_shapes(node, tp).items():
        yield f"{node.path}.{name}" if node.path else name, shape
    for child in node.children():
        yield from shapes_of(child, tp)


def data_share(shape: Shape, dp: int) -> Shape:
    """Give what the first data-parallel rank holds of a tensor-parallel rank's parameter (FSDP2).

    The first dimension is split into equal parts, of which the last may be short or missing; stacked matrices are split
    along their last dimension where the first is too short and the last divides.

    Args:
        shape: of the tensor-parallel rank's parameter.
        dp: data-parallel ranks.

    Source: torch's ``fully_shard``, and `transom.distributed.data_parallel`, which chooses the dimension.

    Example:
        >>> data_share((10, 4), 4), data_share((2, 16, 8), 4)
        ((3, 4), (2, 16, 2))
    """
    if len(shape) == 3 and shape[0] < dp and shape[-1] % dp == 0:
        return (*shape[:-1], shape[-1] // dp)
    return (-(-shape[0] // dp), *shape[1:])


def gathered_numbers(shapes: Mapping[str, Shape], dp: int) -> int:
    """Count the numbers that FSDP2 gathers for a group of parameters: all ranks' equal parts, padding included.

    Example:
        >>> gathered_numbers({"weight": (10, 4)}, 4)
        48
    """
    return dp * sum(math.prod(data_share(shape, dp)) for shape in shapes.values())
