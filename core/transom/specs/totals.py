"""What a plan costs: parameters, floating-point operations, key/value cache and memory, from its requests alone.

Conventions:

- Parameters are counted once; what two places share (an embedding table that is the output layer's weight too) belongs
  to the place that holds it.
- FLOPs are those of the matrix products of one forward pass, per token of a sequence of T tokens, where a
  multiplication and an addition are two: ``2·in·out`` for a linear, ``2·n·(d + dv)·t`` for a core attention with n
  heads, of which each query meets t keys, and ``2·h·v`` for logits. t is T, or the width of the window where that is
  smaller; a causal mask saves nothing in this count. A backward pass costs twice as much again.
- The key/value cache holds g keys of size d and g values of size dv for a token, in the model's dtype, for each
  self-attention that looks back only, and for each cross-attention.
- A token of an encoder-decoder is one that is read and one that is written: T tokens are read and T written.
- Memory is that of parameters, gradients and AdamW's two moments, each in the parameters' dtype. Activations are not
  counted: they depend on the batch and on what is recomputed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transom.slots import SLOTS
from transom.slots.attention import AttentionRequest
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.model import ModelRequest
from transom.slots.norm import NormRequest

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan

__all__ = ["Cost", "Measured", "Memory", "Totals", "costs", "item_size", "own_cost", "told", "totals"]

_TOLD = frozenset(
    f"transom/{name}" for name in ("decoder", "t5", "transformer_layer", "self_attention", "cross_attention", "mlp")
)


@dataclass(frozen=True)
class Cost:
    """What a place costs, with all that is inside it.

    Args:
        parameters: number of them.
        flops: of a forward pass, per token.
        kv_bytes: of the key/value cache, per token.
        is_complete: False where something inside could not be told: the numbers are then lower bounds.
    """

    parameters: int = 0
    flops: int = 0
    kv_bytes: int = 0
    is_complete: bool = True

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.kv_bytes + other.kv_bytes,
            self.is_complete and other.is_complete,
        )


Measured = Mapping[str, Cost]
"""By path, what was measured on the built module, all that is inside it included: see `transom.costs.measure`."""


@dataclass(frozen=True)
class Memory:
    """Bytes that stay allocated; gradients and the optimizer's state only in training."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer

    @classmethod
    def of(cls, parameters: int, dtype: str, mode: str) -> Memory:
        """Compute it from the number of parameters."""
        size = parameters * item_size(dtype)
        return cls(size, size, 2 * size) if mode == "train" else cls(size, 0, 0)

    def to_dict(self) -> dict[str, int]:
        """Give it as plain data, with the total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Totals:
    """What a plan costs in total.

    Args:
        cost: of the model.
        memory: for one copy of the model.
        sequence_length: T, the tokens of the sequence for which FLOPs are counted.
    """

    cost: Cost
    memory: Memory
    sequence_length: int

    def to_dict(self) -> dict[str, Any]:
        """Give them as plain data; FLOPs and cache are per token, memory is in bytes."""
        return {
            "parameters": self.cost.parameters,
            "flops_per_token": self.cost.flops,
            "kv_cache_bytes_per_token": self.cost.kv_bytes,
            "sequence_length": self.sequence_length,
            "memory": self.memory.to_dict(),
            "is_complete": self.cost.is_complete,
        }


def totals(plan: Plan, measured: Measured | None = None) -> Totals:
    """Add up a plan.

    Args:
        plan: the plan.
        measured: of places whose requests do not tell what they cost.

    Example:
        >>> from transom import plan
        >>> totals(plan("tiny-llama")).cost.parameters
        1623744
    """
    cost = costs(plan, measured)[""]
    memory = Memory.of(cost.parameters, plan.context.dtype, plan.context.mode)
    return Totals(cost, memory, plan.spec.max_sequence_length)


def costs(plan: Plan, measured: Measured | None = None) -> dict[str, Cost]:
    """Return the cost of every place, by path, with all that is inside it."""
    found: dict[str, Cost] = {}
    _add_up(plan.root, plan.spec.max_sequence_length, measured or {}, found)
    return found


def _add_up(node: Node, length: int, measured: Measured, found: dict[str, Cost]) -> Cost:
    cost = own_cost(node, length)
    for child in node.children():
        cost += _add_up(child, length, measured, found)
    found[node.path] = cost = measured.get(node.path, cost)
    return cost


def told(node: Node) -> bool:
    """Whether a node's request, and those of its parts, tell what it costs.

    They do for kernel slots, whose mathematics the config fixes, and for core's own architectures, which have no
    parameters outside their parts, or say how many in ``own_parameters(request, options)``.
    """
    is_kernel = node.slot in SLOTS and SLOTS[node.slot].kind == "kernel"
    return is_kernel or node.resolution.chosen.ref in _TOLD


def own_cost(node: Node, length: int) -> Cost:
    """Return what a node costs without its parts.

    Args:
        node: of a plan.
        length: T, tokens of a sequence.
    """
    request = node.request
    if node.within is not None and node.resolution.slot != "norm_linear":
        return Cost()  # what took the norm in is measured with it
    if isinstance(request, LinearRequest):
        matrix = request.input_size * request.output_size
        return Cost(matrix + request.output_size * request.bias, 2 * matrix)
    if isinstance(request, EmbeddingRequest):
        return Cost(request.num_embeddings * request.embedding_dim)
    if isinstance(request, NormRequest):
        return Cost(request.hidden_size * (2 if "layernorm" in request.features else 1))
    if isinstance(request, CoreAttentionRequest):
        return _attention_cost(request, length)
    if isinstance(request, ModelRequest) and told(node):
        return _model_cost(node, request)
    return Cost(kv_bytes=_cached(node), is_complete=told(node))


def _model_cost(node: Node, request: ModelRequest) -> Cost:
    count = getattr(node.resolution.chosen.load(), "own_parameters", None)
    parameters = 0 if count is None else int(count(request, node.options))
    # A model whose output layer is the embedding table multiplies by it, in no place of its own.
    shared = request.share_embeddings_and_output_weights
    return Cost(parameters, 2 * request.config.hidden_size * request.vocab_size if shared else 0)


def _attention_cost(request: CoreAttentionRequest, length: int) -> Cost:
    ranks = request.context.tensor_parallel_size  # the request speaks of one rank's heads
    heads, groups = request.num_attention_heads * ranks, request.num_query_groups * ranks
    sizes = request.head_size + request.value_head_size
    sinks = heads if "sink_learnable" in request.features else 0
    # An encoder sees all of its sequence at once, and keeps nothing for later.
    is_kept = not request.features.isdisjoint({"causal", "cross"})
    cached = groups * sizes * item_size(request.context.dtype) if is_kept else 0
    return Cost(sinks, 2 * heads * sizes * _keys(request.window, length), cached)


def _cached(node: Node) -> int:
    """Return what a self-attention without a core attention in it caches: what its slot's contract lets it."""
    if node.slot != "self_attention" or any(child.slot == "core_attention" for child in node.children()):
        return 0
    assert isinstance(node.request, AttentionRequest), "the slot's"
    if "causal" not in node.request.masks:
        return 0
    config = node.request.config
    return 2 * config.num_query_groups * config.kv_channels * item_size(node.request.context.dtype)


def _keys(window: tuple[int | None, int | None] | None, length: int) -> int:
    """Return how many keys a query meets at most."""
    left, right = window or (None, None)
    bounds = [length if side is None else min(side, length) for side in (left, right)]
    return min(length, sum(bounds) + 1)


def item_size(dtype: str) -> int:
    """Return the bytes of one number of a dtype.

    Example:
        >>> item_size("bfloat16"), item_size("float32"), item_size("float8_e4m3fn")
        (2, 4, 1)
    """
    found = re.search(r"\d+", dtype)
    return int(found[0]) // 8 if found else 1
