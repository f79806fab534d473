"""What each rank holds and computes when a model is split over many: arithmetic on a plan, nothing is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from transom.errors import ConfigError, ParallelError
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.model import ModelRequest
from transom.specs.totals import Cost, Measured, Memory, item_size, own_cost
from transom.transformer.pipeline_layout import layers_of_chunks

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Stage", "World", "how_cut", "parse_world", "pipelined", "split"]

_CUTS: dict[str, Any] = {
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
}
"""Fields of a config that say how layers are cut, where nothing is said."""

_COUNTED = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
_ZERO = "0: nothing, 1: the optimizer's state, 2: gradients too, 3: parameters too"


@dataclass(frozen=True)
class World:
    """How many ranks share what.

    Args:
        tp: ranks that share each layer's weights.
        pp: pipeline stages, which share the layers.
        dp: ranks that hold the same and see other data.
        zero: what the data-parallel ranks split among themselves: 0 nothing, 1 the optimizer's state, 2 gradients too,
            3 parameters too.
        vpp: virtual stages of each pipeline stage.
        layout: which layers each of them has, as `transom.transformer.pipeline_layout` reads it; `None` = as the
            config says, or evenly.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 0
    vpp: int = 1
    layout: str | None = None

    @classmethod
    def of(cls, config: TransformerConfig) -> World:
        """Give the sizes that a config has."""
        virtual = config.virtual_pipeline_model_parallel_size or 1
        return cls(config.tensor_model_parallel_size, config.pipeline_model_parallel_size, vpp=virtual)

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tp * self.pp * self.dp


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


def parse_world(text: str, config: TransformerConfig | None = None) -> World:
    """Read ``tp=8,pp=16,dp=32,zero=1``, and ``vpp=2,layout=Et*3|(tt|)*14,L``; a layout comes last.

    Args:
        text: sizes; what is not given is the config's, or 1, and zero is 0.
        config: of the model; `None` = one without parallelism.

    Raises:
        ParallelError: another word, or a number that cannot be.

    Example:
        >>> parse_world("tp=8,pp=16").ranks
        128
    """
    numbers, has_layout, layout = text.partition("layout=")
    sizes: dict[str, int] = {}
    pieces = numbers.strip().removesuffix(",").split(",")
    for piece in pieces if numbers.strip() or not has_layout else ():
        name, _, number = (word.strip() for word in piece.partition("="))
        if name not in World.__dataclass_fields__:
            raise _error(f"{piece.strip()!r} is no size of a world.", "tp=8,pp=16,dp=32,zero=1")
        if name in sizes:
            raise _error(f"{name} is given twice.", "each size once")
        if not re.fullmatch(r"[0-9]{1,7}", number) or (name != "zero" and int(number) < 1):
            raise _error(f"{name} is {number!r}, not a number of ranks.", "a number from 1 on")
        sizes[name] = int(number)
    if sizes.get("zero", 0) > 3:
        raise _error(f"zero is {sizes['zero']}.", _ZERO)
    known = World() if config is None else World.of(config)
    return replace(known, **sizes, layout=layout.strip() if has_layout else None)


def pipelined(config: TransformerConfig, world: World) -> TransformerConfig:
    """Give the config under which the stages of a world would be built.

    It is the model's own where that has these stages. Where nothing says how to cut the layers and they do not divide,
    the embedding and the loss count as a layer each.

    Args:
        config: of the model.
        world: how many stages there are.

    Raises:
        ParallelError: the layers cannot be cut like this.
    """
    if world.layout is None and replace(World.of(config), tp=world.tp, dp=world.dp, zero=world.zero) == world:
        return config
    virtual = world.vpp if world.vpp > 1 else None
    sizes = {"pipeline_model_parallel_size": world.pp, "virtual_pipeline_model_parallel_size": virtual}
    told = {name: getattr(config, name) for name in _CUTS if getattr(config, name)}
    if world.layout is not None or world.pp == 1:
        told = {} if world.layout is None else {"pipeline_model_parallel_layout": world.layout}
    ways = [{**_CUTS, **told}] if told or world.pp == 1 else [dict(_CUTS), {**_CUTS, **_COUNTED}]
    errors = []
    for way in ways:
        try:
            return config.replace(**sizes, **way)
        except ConfigError as error:
            errors.append(error)
    hint = "another pp or vpp, or layout=, for instance pp=3,layout=Et*3|t*4|t*3,L"
    raise _error(errors[0].what, hint) from errors[0]


def how_cut(config: TransformerConfig, world: World) -> dict[str, Any]:
    """Give the fields of a config that cut the layers like this.

    Raises:
        ParallelError: as `pipelined`.
    """
    made = pipelined(config, world)
    names = ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", *_CUTS)
    found = {name: getattr(made, name) for name in names}
    return {name: value for name, value in found.items() if value is True or value not in (None, False, 1)}


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
    before, layers, after = _places(plan.root)
    costs = [shares.of(layer)[1] for layer in layers]
    chunks = _chunks(plan.config, world, len(layers))
    stages = []
    for number in range(world.pp):
        own = tuple(chunks[number :: world.pp])
        cost = sum((cost for first, last in own for cost in costs[first:last]), Cost())
        if number == 0:
            cost = sum((shares.of(node)[1] for node in before), cost)
        if number == world.pp - 1:
            cost = sum((shares.of(node)[1] for node in after), cost) + shares.own(plan.root)[1]
            cost += _copies(plan.root, before, shares, world)
        memory = _memory(Memory.of(cost.parameters, plan.context.dtype, plan.context.mode), world, plan.context.dtype)
        stages.append(Stage(number, own, cost, memory))
    return tuple(stages)


def _chunks(config: TransformerConfig, world: World, layers: int) -> list[tuple[int, int]]:
    """Give the first and the one after the last layer of each virtual stage, from 0."""
    if layers == config.num_layers:
        return list(pairwise(accumulate(layers_of_chunks(pipelined(config, world)), initial=0)))
    if world.pp > 1:  # an encoder's layers stand before the decoder's, and no config says how to cut both
        raise _error("the layers of an encoder-decoder are not cut into stages.", "pp=1")
    return [(0, layers)]


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
            # What was measured beyond the parts is of a third party's making, and whole on each rank.
            known, whole = whole, self.measured[node.path]
            share = share + _less(whole, known)
        return whole, share

    def own(self, node: Node) -> tuple[Cost, Cost]:
        """Likewise, without what is inside it."""
        whole = own_cost(node, self.length)
        for name, size in _divided(node, self.ranks):
            if size % self.ranks:
                what = f"{node.path}: {name} {size} does not divide over {self.ranks} tensor-parallel ranks."
                raise _error(what, f"a tp that divides {size}")
        return whole, _share(node, whole, self.ranks)


def _less(cost: Cost, other: Cost) -> Cost:
    return Cost(
        cost.parameters - other.parameters, cost.flops - other.flops, cost.kv_bytes - other.kv_bytes, cost.is_complete
    )


def _divided(node: Node, over: int) -> Iterator[tuple[str, int]]:
    """Yield what must divide over so many ranks; a key/value head may also be on several of them."""
    request = node.request
    if isinstance(request, LinearRequest):
        name = "output_size" if node.slot == "column_linear" else "input_size"
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


def _copies(root: Node, before: Sequence[Node], shares: _Shares, world: World) -> Cost:
    """Return what the last stage has a copy of: the embedding table that is the output weight too."""
    request = root.request
    is_shared = isinstance(request, ModelRequest) and request.share_embeddings_and_output_weights
    if world.pp == 1 or not is_shared:
        return Cost()
    tables = [node for node in before if isinstance(node.request, EmbeddingRequest)]
    return shares.of(tables[0])[1] if tables else Cost()


def _memory(whole: Memory, world: World, dtype: str) -> Memory:
    def part(size: int, level: int) -> int:
        numbers = size // item_size(dtype)
        return -(-numbers // world.dp) * item_size(dtype) if world.zero >= level else size

    return Memory(part(whole.parameters, 3), part(whole.gradients, 2), part(whole.optimizer, 1))


def _error(what: str, hint: str) -> ParallelError:
    return ParallelError(what, asked_by="--world", hint=hint)
