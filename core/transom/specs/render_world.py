"""What ranks hold and say as tables of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from transom.specs.render import in_bytes, in_units

if TYPE_CHECKING:
    from transom.specs.communication import Exchange
    from transom.specs.shares import Stage
    from transom.specs.step import Step
    from transom.specs.world import World

__all__ = ["Ranks", "render_world"]

_GAP = "  "
_AXES = {"tp": "tensor-parallel", "pp": "pipeline", "dp": "data-parallel", "cp": "context-parallel"}


@dataclass(frozen=True)
class Ranks:
    """What is told of the ranks of every pipeline stage; each has one entry a stage.

    Args:
        stages: parameters, and memory without activations.
        activations: estimated bytes; empty = not told.
        exchanges: of one step; empty = not told.
    """

    stages: Sequence[Stage]
    activations: Sequence[int] = ()
    exchanges: Sequence[Sequence[Exchange]] = ()

    def to_dict(self) -> list[dict[str, Any]]:
        """Give them as plain data, one entry a stage."""
        found = []
        for number, stage in enumerate(self.stages):
            data = stage.to_dict()
            if self.activations:
                data["activations"] = self.activations[number]
            if self.exchanges:
                data["communication"] = [each.to_dict() for each in self.exchanges[number]]
            found.append(data)
        return found


def render_world(world: World, ranks: Ranks, cut: Mapping[str, Any], step: Step | None = None) -> str:
    """Draw what a rank of each pipeline stage holds, and what it says to others in a step.

    Consecutive stages that are alike are drawn once.

    Args:
        world: how many ranks there are.
        ranks: what each has.
        cut: the fields of a config that cut the layers like this.
        step: what a rank computes, for which exchanges and activations are told; `None` = they are not.
    """
    sizes = ", ".join(f"{name} {getattr(world, axis)}" for axis, name in _AXES.items() if axis != "cp" or world.cp > 1)
    largest = max(ranks.stages, key=lambda stage: stage.memory.total)
    fields = ", ".join(f"{name}: {json.dumps(value)}" for name, value in cut.items())
    return "\n".join(
        [
            f"{world.ranks} ranks: {sizes}; each has, {'without' if step is None else 'beside'} activations:",
            *_aligned(_held(ranks)),
            f"Largest: {in_bytes(largest.memory.total)} on the ranks of stage {largest.number}",
            *([f"Cut as by: {fields}"] if fields else []),
            *([] if step is None else _said(ranks, step)),
        ]
    )


def _held(ranks: Ranks) -> Iterator[tuple[str, ...]]:
    more = ("activations",) if ranks.activations else ()
    yield "stage", "layers", "parameters", "memory", "gradients", "AdamW", "in all", *more, "FLOPs/token", "cache/token"
    kept = dict(zip((stage.number for stage in ranks.stages), ranks.activations, strict=False))
    # A stage holds more parts of a batch the earlier it is: of stages that are alike otherwise, the first is told.
    for _, group in groupby(ranks.stages, key=lambda stage: (stage.cost, stage.memory, _sizes(stage))):
        first, *others = list(group)
        last = others[-1] if others else first
        ranges = zip(first.layers, last.layers, strict=True)
        layers = ", ".join(_span(begin, end - 1) for (begin, _), (_, end) in ranges if end > begin) or "none"
        memory, cost = first.memory, first.cost
        held = [memory.parameters, memory.gradients, memory.optimizer, memory.total]
        held += [kept[first.number]] if kept else []
        cells = [in_units(cost.parameters), *map(in_bytes, held), in_units(cost.flops), in_bytes(cost.kv_bytes)]
        yield _span(first.number, last.number), layers, *cells


def _said(ranks: Ranks, step: Step) -> list[str]:
    """Say what the rank exchanges that sends most."""
    sums = [sum(each.sent for each in stage) for stage in ranks.exchanges]
    if not any(sums):
        return []
    number = sums.index(max(sums))
    rows = [("", "what", "operation", "calls", "bytes", "sent at least")]
    for each in ranks.exchanges[number]:
        sizes = (str(each.calls), in_bytes(each.bytes), in_bytes(each.sent))
        rows.append((each.axis, each.what, each.operation, *sizes))
    passes = "one pass" if step.passes == 1 else f"{step.passes} passes"
    where = f", most of all on stage {number}" if len(sums) > 1 else ""
    work = f"{passes} of {step.sequences} x {step.written} tokens"
    return [
        "",
        f"In a step, {work}, a rank sends at least {in_bytes(max(sums))}{where}:",
        *_aligned(rows, left=3),
    ]


def _aligned(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]], left: int = 0) -> Iterator[str]:
    """Pad columns, the first ones on the right."""
    cells = list(rows)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield _GAP.join(padded).rstrip()


def _sizes(stage: Stage) -> list[int]:
    return [end - begin for begin, end in stage.layers]


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"
