"""What ranks say to one another in a training step, in bytes: arithmetic on a plan, nothing is built.

A step's collectives are those of `transom train`: of linears, embedding and loss that are split over tensor-parallel
ranks (``parallel_linear``), of FSDP2, of torch's pipeline schedules, and what is done with gradients before the update.
With p tensor-parallel ranks, d data-parallel ranks, sequences ``[b, s]`` in one forward pass of a rank, width h, e
bytes a number, and in brackets what sequence parallelism makes of it:

==================== ======================================= =======================================
what                 forward                                 backward
==================== ======================================= =======================================
column linear        none [all-gather b·s·in·e]              all-reduce [reduce-scatter] b·s·in·e
row linear           all-reduce [reduce-scatter] b·s·out·e   none [all-gather b·s·out·e]
its bias             none                                    none [all-reduce out·e]
embedding            all-reduce [reduce-scatter] b·s·h·e     none [all-gather b·s·h·e]
shared heads         all-gather b·s·out·e                    all-reduce b·s·out·e
loss                 [all-gather b·s·h·e;] three all-reduces all-reduce [reduce-scatter] b·s·h·e
                     of b·s float32 numbers
parameters (FSDP2)   all-gather of each layer, and the rest  all-gather of each layer; reduce-scatter
                                                             of each layer, and the rest
stages               send b·s·h·e                            send b·s·h·e
keys and values (cp) all-gather b·s·g·(d + dv)·e             reduce-scatter b·s·g·(d + dv)·e
==================== ======================================= =======================================

What is recomputed says again what it says forward. An expert's linear has no sequence parallelism. Heads are shared
where key/value heads are fewer than ranks; ``out`` is then that of the projection which makes them. A decoder's stages
hand on what the encoder has read, too. Of c context-parallel ranks each has s/c tokens of every sequence, and attention
gathers the g key/value heads of its tensor-parallel rank; they split with the data-parallel ranks what these split.
What is done once a step: the sum of the gradients of norms that see a part of the tokens or of the heads, and of tables
that several stages have; the norm of all gradients; the mean loss; and whether somebody was asked to stop.

Bytes are those of the whole tensor, as `torch.distributed.tensor.debug.CommDebugMode` sees it: what is reduced, what is
scattered, what was gathered. ``sent`` is what a rank sends of them at least, in a ring: of n bytes over p ranks,
2·n·(p-1)/p for an all-reduce, n·(p-1)/p for an all-gather or a reduce-scatter, n for a send.

Source: Shoeybi et al. 2019; Korthikanti et al. 2022; Zhao et al. 2023 (FSDP); Patarin and Yuan 2009 (rings).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from transom.slots.attention import AttentionRequest
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.loss import LossRequest
from transom.slots.norm import NormRequest
from transom.specs.recomputed import recomputed_places
from transom.specs.shapes import data_share, gathered_numbers, shapes_of
from transom.specs.stage_nodes import stages_of

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.specs.stage_nodes import StageNodes
    from transom.specs.step import Step
    from transom.specs.world import World
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Exchange", "Operation", "communication"]

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]
_FORWARD = {
    ("column linears", "all_gather"),
    ("row linears", "all_reduce"),
    ("row linears", "reduce_scatter"),
    ("shared heads", "all_gather"),
}
"""What linears say in their forward pass, and again where that is recomputed."""
_TURNS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind that a rank takes part in, in one step.

    Args:
        axis: of the mesh along which the ranks lie: ``"tp"``, ``"dp"``, ``"pp"``, ``"cp"``, or ``"all"`` of them.
        what: is said.
        operation: of `torch.distributed`.
        calls: how often.
        bytes: of the whole tensors, all calls together.
        ranks: how many take part.

    Example:
        >>> Exchange("tp", "row linears", "all_reduce", 2, 1000, 4).sent
        1500
    """

    axis: str
    what: str
    operation: Operation
    calls: int
    bytes: int
    ranks: int

    @property
    def sent(self) -> int:
        """Bytes that a rank sends at least: in a ring."""
        if self.operation == "send":
            return self.bytes
        return math.ceil(Fraction(_TURNS[self.operation] * self.bytes * (self.ranks - 1), self.ranks))

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        names = ("axis", "what", "operation", "calls", "bytes", "ranks")
        return {**{name: getattr(self, name) for name in names}, "sent": self.sent}


_Said = tuple[str, str, Operation, int, int]
"""Axis, what, operation, calls and bytes of each."""


def communication(plan: Plan, world: World, step: Step) -> tuple[tuple[Exchange, ...], ...]:
    """Say what one rank of every pipeline stage says in a step.

    Args:
        plan: of the whole model.
        world: how many ranks there are; its data-parallel ranks split everything (``zero=3``), as FSDP2 does.
        step: what is computed.

    Returns:
        the exchanges of each stage, in the order of axes; those of one rank alone are left out.

    Raises:
        ParallelError: as `transom.specs.shares.split`.

    Example:
        >>> from transom import plan
        >>> from transom.specs.step import Step
        >>> from transom.specs.world import World
        >>> made, world = plan("tiny-llama"), World(dp=2)
        >>> (stage,) = communication(made, world, Step.of(made, world))
        >>> [(each.what, each.operation, each.bytes) for each in stage][:2]
        [('parameters', 'all_gather', 12792576), ('gradients', 'reduce_scatter', 6494976)]
    """
    stages = stages_of(plan, world)
    rank = _Rank(plan, world, step, stages)
    return tuple(rank.of_stage(nodes) for nodes in stages)


@dataclass(frozen=True)
class _Rank:
    """A rank, which says something in every part of its stage."""

    plan: Plan
    world: World
    step: Step
    stages: tuple[StageNodes, ...]

    def of_stage(self, nodes: StageNodes) -> tuple[Exchange, ...]:
        world, found = self.world, defaultdict[tuple[str, str, Operation, int], list[int]](lambda: [0, 0])
        sizes = {"tp": world.tp, "dp": world.data, "cp": world.cp, "pp": world.pp, "all": world.ranks}
        for axis, what, operation, calls, size in self._all(nodes):
            found[axis, what, operation, sizes[axis]][0] += calls
            found[axis, what, operation, sizes[axis]][1] += calls * size
        for ranks, numbers in self._shared(nodes):
            found["pp", "gradients of copies", "all_reduce", ranks][0] += 1
            found["pp", "gradients of copies", "all_reduce", ranks][1] += numbers * self.step.width
        return tuple(
            Exchange(axis, what, operation, calls, size, ranks)
            for (axis, what, operation, ranks), (calls, size) in found.items()
            if ranks > 1 and size
        )

    def _all(self, nodes: StageNodes) -> Iterator[_Said]:
        again = recomputed_places(nodes)
        if self.world.tp > 1:
            looked_up = nodes.copies if nodes.embeds else ()
            for place in nodes.places() + looked_up:
                yield from self._of_places(place, nodes.embeds, again)
        for layer in nodes.layers:
            yield from self._of_context(layer, again)
        yield from self._of_partial_gradients(nodes)
        yield from self._of_data(nodes)
        yield from self._of_pipeline(nodes)
        yield from self._once(nodes)

    def _of_places(self, top: Node, embeds: tuple[str, ...], again: frozenset[str]) -> Iterator[_Said]:
        speech = _TensorParallel(self.plan.config, self.world, self.step, embeds)
        for node in top.nodes():
            for what, operation, size in speech.of(node):
                times = 2 if node.path in again and (what, operation) in _FORWARD else 1
                yield "tp", what, operation, times * self.step.passes, size

    def _of_context(self, layer: Node, again: frozenset[str]) -> Iterator[_Said]:
        """Keys and values of whole sequences, which attention gathers."""
        for node in layer.nodes():
            request = node.request
            if isinstance(request, CoreAttentionRequest):
                groups = max(1, self.plan.config.num_query_groups // self.world.tp)
                numbers = groups * (request.head_size + request.value_head_size)
                size = self.step.tokens(node.path) * self.world.cp * numbers * self.step.product_width
                times = 2 if node.path in again else 1
                yield "cp", "keys and values", "all_gather", times * self.step.passes, size
                yield "cp", "keys and values", "reduce_scatter", self.step.passes, size

    def _of_partial_gradients(self, nodes: StageNodes) -> Iterator[_Said]:
        """All norms' gradients under sequence parallelism, else those of norms of heads, in one collective."""
        is_sequence = bool(self.world.sp)
        shapes = [
            shape
            for top in nodes.places()
            for node in top.nodes()
            if isinstance(node.request, NormRequest) and (is_sequence or _is_of_heads(node))
            for _, shape in shapes_of(node, self.world.tp)
        ]
        numbers = sum(math.prod(data_share(shape, self.world.data)) for shape in shapes)
        yield "tp", "gradients of norms", "all_reduce", 1, numbers * self.step.width

    def _of_data(self, nodes: StageNodes) -> Iterator[_Said]:
        """What FSDP2 gathers and scatters: each layer by itself, and the rest together."""
        dp, passes = self.world.data, self.step.passes
        # The stages of a pipeline stay gathered for all parts of a batch, and sum once.
        gathers, sums = (2 * passes, passes) if self.world.pp == 1 else (self.step.batches, self.step.batches)
        for layer in nodes.layers:
            numbers = gathered_numbers(dict(shapes_of(layer, self.world.tp)), dp)
            yield "dp", "parameters", "all_gather", gathers, numbers * self.step.gathered_width
            yield "dp", "gradients", "reduce_scatter", sums, numbers * self.step.summed_width
        numbers = gathered_numbers(nodes.rest(self.world.tp), dp)
        # The rest stays gathered between forward and backward.
        yield "dp", "parameters", "all_gather", sums if numbers else 0, numbers * self.step.gathered_width
        yield "dp", "gradients", "reduce_scatter", sums if numbers else 0, numbers * self.step.summed_width

    def _of_pipeline(self, nodes: StageNodes) -> Iterator[_Said]:
        if self.world.pp == 1:
            return
        chunks, is_first, is_last = len(nodes.chunks), nodes.number == 0, nodes.number == self.world.pp - 1
        for path in nodes.sends:
            size = self.step.hidden_bytes(self.plan.config, self.world, path)
            yield "pp", "hidden states", "send", (chunks - is_last) * self.step.passes, size
        for path in nodes.receives:
            size = self.step.hidden_bytes(self.plan.config, self.world, path)
            yield "pp", "their gradients", "send", (chunks - is_first) * self.step.passes, size
        yield "pp", "loss", "all_reduce", self.step.batches, 8

    def _shared(self, nodes: StageNodes) -> Iterator[tuple[int, int]]:
        """Say how many stages have a copy of a parameter outside of layers, and how many numbers of it are here."""
        tp, data = self.world.tp, self.world.data
        held = [{node.path for node in stage.ends + stage.copies} for stage in self.stages]
        copied = {node.path for stage in self.stages for node in stage.copies}
        for node in nodes.ends + nodes.copies:
            if node.path in copied:
                ranks = sum(node.path in paths for paths in held)
                for _, shape in shapes_of(node, tp):
                    yield ranks, math.prod(data_share(shape, data))
        if nodes.biases:
            alike = [stage for stage in self.stages if stage.biases and stage.sends == nodes.sends]
            yield len(alike), -(-nodes.biases // tp // data)

    def _once(self, nodes: StageNodes) -> Iterator[_Said]:
        """Squares of gradients that ranks hold parts of; the mean loss; and whether one was asked to stop."""
        wide, dp = max(self.step.width, 4), self.world.data
        yield "tp", "norm of gradients", "all_reduce", 1, wide
        yield "tp", "norm of gradients", "all_reduce", 1, 4  # of a kind of parameters that there is none of
        yield "dp", "norm of gradients", "all_reduce", 2 if dp > 1 else 0, wide
        yield "pp", "norm of gradients", "all_reduce", 1, wide
        yield "dp", "mean loss", "all_reduce", 1, 4
        yield "all", "whether to stop", "all_reduce", 1, 8


@dataclass(frozen=True)
class _TensorParallel:
    """What places say whose weights are split, in one forward pass and its backward pass."""

    config: TransformerConfig
    world: World
    step: Step
    embeds: tuple[str, ...]

    def of(self, node: Node) -> Iterable[tuple[str, Operation, int]]:
        request = node.request
        if isinstance(request, LinearRequest):
            return self._of_linear(node, request)
        if isinstance(request, EmbeddingRequest):
            return self._of_embedding(node, request)
        if isinstance(request, AttentionRequest):
            return self._of_shared_heads(node)
        if isinstance(request, LossRequest):
            return self._of_loss()
        return ()

    def _of_linear(self, node: Node, request: LinearRequest) -> Iterator[tuple[str, Operation, int]]:
        if node.path.endswith("output_layer"):  # in training the loss makes the logits
            return
        step, tokens = self.step, self.step.tokens(node.path)
        is_split = bool(self.world.sp) and not request.is_expert
        if node.slot != "row_linear":
            size = tokens * request.input_size * step.exchanged_width
            yield from self._entrance("column linears", size, is_split=is_split)
            return
        size = tokens * request.output_size * step.product_width
        yield "row linears", "reduce_scatter" if is_split else "all_reduce", size
        if is_split:
            yield "row linears", "all_gather", size
            yield "biases of row linears", "all_reduce", request.output_size * step.exchanged_width * request.bias

    def _of_embedding(self, node: Node, request: EmbeddingRequest) -> Iterator[tuple[str, Operation, int]]:
        step = self.step
        for length in [step.read if path == "encoder." else step.written for path in self.embeds]:
            # Positions are looked up once for all sequences.
            tokens = length if node.path.endswith("position_embeddings") else length * step.sequences
            size = tokens * request.embedding_dim * step.exchanged_width
            yield "embedding", "reduce_scatter" if self.world.sp else "all_reduce", size
            if self.world.sp:
                yield "embedding", "all_gather", size

    def _of_shared_heads(self, node: Node) -> Iterator[tuple[str, Operation, int]]:
        if self.world.tp <= self.config.num_query_groups:
            return
        for child in node.children():
            if isinstance(child.request, LinearRequest) and child.path.endswith(("linear_qkv", "linear_kv")):
                size = self.step.tokens(child.path) * child.request.output_size * self.step.product_width
                yield "shared heads", "all_gather", size
                yield "shared heads", "all_reduce", size

    def _of_loss(self) -> Iterator[tuple[str, Operation, int]]:
        tokens = self.step.tokens("loss")
        size = tokens * self.config.hidden_size * self.step.exchanged_width
        yield from self._entrance("loss", size, is_split=bool(self.world.sp))
        for _ in range(3):  # the largest logit, the sum of exponentials, the label's logit
            yield "loss", "all_reduce", tokens * max(self.step.width, 4)

    def _entrance(self, what: str, size: int, *, is_split: bool) -> Iterator[tuple[str, Operation, int]]:
        if is_split:
            yield what, "all_gather", size
        yield what, "reduce_scatter" if is_split else "all_reduce", size


def _is_of_heads(node: Node) -> bool:
    return node.path.endswith(("q_layernorm", "k_layernorm"))
