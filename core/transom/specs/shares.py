"""What each rank holds and computes when a model is split over many: arithmetic on a plan, nothing is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transom.errors import ParallelError
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.model import ModelRequest
from transom.specs.stage_nodes import stages_of
from transom.specs.totals import Cost, Measured, Memory, item_size, own_cost

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.specs.world import World

__all__ = ["Stage", "split"]


@dataclass(frozen=True)
class Stage:
    """What one rank of a pipeline stage has.

    Args:
        number: of the stage, from 0.
        layers: of each of its virtual stages, the first and the one after the last of its layers, from 0.
        cost: its parameters, and its part of the FLOPs and of the cache of every token.
        memory: in bytes.
    """

    number: int
    layers: tuple[tuple[int, int], ...]
    cost: Cost
    memory: Memory

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "stage": self.number,
            "layers": [list(each) for each in self.layers],
            "parameters": self.cost.parameters,
            "flops_per_token": self.cost.flops,
            "kv_cache_bytes_per_token": self.cost.kv_bytes,
            "memory": self.memory.to_dict(),
        }


def split(plan: Plan, world: World, measured: Measured | None = None) -> tuple[Stage, ...]:
    """Say what one rank of every pipeline stage holds and computes.

    Linears, embedding tables, heads and logits are split over the tensor-parallel ranks; norms, biases of row linears
    and what no request tells are whole on each. The first stage has what stands before the layers, the last what stands
    after, with a copy of an embedding table that is the output weight too.

    Args:
        plan: of the whole model.
        world: how many ranks there are.
        measured: costs of places whose requests do not tell them.

    Returns:
        one entry a stage.

    Raises:
        ParallelError: something does not divide over the ranks, or the layers cannot be cut like this.
    """
    shares = _Shares(plan.spec.max_sequence_length, world.tp, measured or {})
    stages = []
    for nodes in stages_of(plan, world):
        cost = sum((shares.of(node)[1] for node in nodes.places()), Cost())
        if nodes.root is not None:
            cost += replace(shares.own(nodes.root)[1], parameters=0)
        copied = sum(shares.of(node)[1].parameters for node in nodes.copies)
        cost = replace(cost, parameters=cost.parameters + copied + nodes.own // world.tp)
        memory = _memory(Memory.of(cost.parameters, plan.context.dtype, plan.context.mode), world, plan.context.dtype)
        stages.append(Stage(nodes.number, nodes.chunks, cost, memory))
    return tuple(stages)


@dataclass(frozen=True)
class _Shares:
    """What a tensor-parallel rank has of a place."""

    length: int
    ranks: int
    measured: Measured

    def of(self, node: Node) -> tuple[Cost, Cost]:
        """Return the cost of a place on one rank alone, and of this rank among several."""
        whole, share = self.own(node)
        for child in node.children():
            inner = self.of(child)
            whole, share = whole + inner[0], share + inner[1]
        if node.path in self.measured:
            known, whole = whole, self.measured[node.path]
            share = _as_measured(share, known, whole)
        return whole, share

    def own(self, node: Node) -> tuple[Cost, Cost]:
        """Likewise, without what is inside it."""
        whole = own_cost(node, self.length)
        for name, size in _divided(node, self.ranks):
            if size % self.ranks:
                what = f"{node.path}: {name} {size} does not divide over {self.ranks} tensor-parallel ranks."
                raise _error(what, f"a tp that divides {size}")
        return whole, _share(node, whole, self.ranks)


def _as_measured(share: Cost, parts: Cost, measured: Cost) -> Cost:
    """Correct a rank's share of the parts' cost by what was measured of the whole.

    What goes beyond the parts is of a third party's making, and whole on each rank. Where less is computed than by all
    parts, tokens go to some of them alone, as in a mixture of experts: each rank then computes as much less.
    """
    beyond = _less(measured, parts)
    if beyond.flops < 0:
        share = replace(share, flops=share.flops * measured.flops // parts.flops)
        beyond = replace(beyond, flops=0)
    return replace(share + beyond, is_complete=measured.is_complete)


def _less(cost: Cost, other: Cost) -> Cost:
    return Cost(
        cost.parameters - other.parameters, cost.flops - other.flops, cost.kv_bytes - other.kv_bytes, cost.is_complete
    )


def _divided(node: Node, over: int) -> Iterator[tuple[str, int]]:
    """Yield what must divide over so many ranks; a key/value head may also be on several of them."""
    request = node.request
    if isinstance(request, LinearRequest):
        name = "input_size" if node.slot == "row_linear" else "output_size"
        yield name, getattr(request, name)
    if isinstance(request, EmbeddingRequest):
        yield "num_embeddings", request.num_embeddings
    if isinstance(request, CoreAttentionRequest):
        ranks = request.context.tensor_parallel_size
        yield "num_attention_heads", request.num_attention_heads * ranks
        groups = _groups(request)
        if over % groups:
            yield "num_query_groups", groups


def _groups(request: CoreAttentionRequest) -> int:
    """Key/value heads over all ranks."""
    return request.num_query_groups * request.context.tensor_parallel_size


def _share(node: Node, whole: Cost, ranks: int) -> Cost:
    request = node.request
    if not isinstance(request, LinearRequest | EmbeddingRequest | CoreAttentionRequest | ModelRequest):
        return whole
    caches = min(ranks, _groups(request)) if isinstance(request, CoreAttentionRequest) else ranks
    share = Cost(whole.parameters // ranks, whole.flops // ranks, whole.kv_bytes // caches, whole.is_complete)
    if node.slot == "row_linear" and isinstance(request, LinearRequest) and request.bias:
        weight = request.input_size * request.output_size
        return replace(share, parameters=weight // ranks + request.output_size)
    return share


def _memory(whole: Memory, world: World, dtype: str) -> Memory:
    def part(size: int, level: int) -> int:
        numbers = size // item_size(dtype)
        return -(-numbers // world.data) * item_size(dtype) if world.zero >= level else size

    return Memory(part(whole.parameters, 3), part(whole.gradients, 2), part(whole.optimizer, 1))


def _error(what: str, hint: str) -> ParallelError:
    return ParallelError(what, asked_by="--world", hint=hint)
