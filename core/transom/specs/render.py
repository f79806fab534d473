"""A plan as a tree of text: who fills each place, why the others do not, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from transom.specs.lock import lock_hook
from transom.specs.totals import Cost, Measured, Totals, costs, totals

if TYPE_CHECKING:
    from transom.registry.hooks import Hook
    from transom.specs.node import Node
    from transom.specs.plan import Plan

__all__ = ["alike", "group_label", "hook_label", "in_bytes", "in_units", "render_plan", "render_totals"]

_GAP = "  "
_HEADINGS = ("parameters", "FLOPs/token", "cache/token")


def render_plan(plan: Plan, *, measured: Measured | None = None, with_columns: bool = False) -> str:
    """Draw the tree; consecutive layers that are alike are drawn once.

    Args:
        plan: what to draw.
        measured: costs of places whose requests do not tell them, as `transom.costs.measure` finds them.
        with_columns: show what each place costs.

    Example:
        >>> from transom import plan
        >>> print(str(plan("tiny-llama")).splitlines()[0])
        tiny-llama: decoder (transom 0.1.0), float32 on cpu, to train
    """
    context = plan.context
    head = f"{plan.spec.name}: {_who(plan.root)}, {context.dtype} on {context.device}, to {context.mode}"
    found = costs(plan, measured)
    rows = list(_rows(plan.root, "", found))
    if with_columns:
        rows = [("", "", _HEADINGS), *((label, who, cells or ("",) * 3) for label, who, cells in rows)]
    else:
        rows = [(label, who, ()) for label, who, _ in rows]
    heads = [head, *_hook_lines(plan)]
    return "\n".join([*heads, *_aligned(rows), "", render_totals(totals(plan, measured))])


def _hook_lines(plan: Plan) -> Iterator[str]:
    """Say which hooks run, and how the whole model was decided on."""
    if plan.hooks:
        yield f"hooks: {', '.join(hook_label(hook) for hook in plan.hooks)}"
    for label, text in _explained(plan.root):
        yield f"{label}: {text}"


def hook_label(hook: Hook) -> str:
    """Name a hook, with its options."""
    options = lock_hook(hook).options
    return f"{hook.label} {options}" if options else hook.label


def render_totals(found: Totals) -> str:
    """Say in one or two lines what a plan costs."""
    cost, memory = found.cost, found.memory
    at_least = "" if cost.is_complete else "at least "
    parts = [f"{in_bytes(memory.parameters)} parameters"]
    if memory.gradients:
        parts += [f"{in_bytes(memory.gradients)} gradients", f"{in_bytes(memory.optimizer)} AdamW"]
    return (
        f"Total: {at_least}{in_units(cost.parameters)} parameters, {in_units(cost.flops)} FLOPs a token forward at "
        f"{found.sequence_length} tokens, {in_bytes(cost.kv_bytes)} of key/value cache a token\n"
        f"Memory: {in_bytes(memory.total)} ({', '.join(parts)}), without activations"
    )


def in_units(number: int) -> str:
    """Write a large number in short.

    Example:
        >>> in_units(999), in_units(1_672_128), in_units(405_853_388_800)
        ('999', '1.672 M', '405.9 G')
    """
    return _scaled(number, 1000, ("", " k", " M", " G", " T", " P"))


def in_bytes(number: int) -> str:
    """Write a number of bytes in short, in powers of 1024.

    Example:
        >>> in_bytes(512), in_bytes(3 * 2**30)
        ('512 B', '3.000 GiB')
    """
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def _scaled(number: int, step: int, units: Sequence[str]) -> str:
    if number < step:
        return f"{number}{units[0]}"
    power = 0
    scaled = float(number)
    while scaled >= step and power < len(units) - 1:
        scaled, power = scaled / step, power + 1
    return f"{scaled:.{max(0, 4 - len(str(int(scaled))))}f}{units[power]}"


Row = tuple[str, str, Sequence[str]]


def _rows(node: Node, indent: str, found: dict[str, Cost]) -> Iterator[Row]:
    groups = [group for part in node.parts.values() for group in alike(part, found)]
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        first = group[0]
        label = f"{indent}{'└─' if last else '├─'} {group_label(group, node.path)}"
        yield label, f"{first.slot}: {_who(first)}", _cells(found[first.path])
        deeper = indent + ("   " if last else "│  ")
        bar = "│  " if first.parts else "   "
        for what, text in _explained(first):
            yield f"{deeper}{bar}{what}", text, ()
        yield from _rows(first, deeper, found)


def _explained(node: Node) -> Iterator[tuple[str, str]]:
    """Yield what is to be said of a place beside who fills it."""
    chosen, asked = node.resolution.chosen, node.resolution.asked
    if node.within is not None:
        parent = node.path.rpartition(".")[0]
        yield "filled by", f"the module at {node.within.removeprefix(f'{parent}.')}, which norms its input"
        return
    if asked not in ((chosen.name,), (chosen.ref,)):
        yield "asked for", f"{' | '.join(asked)}, by {node.asked_by}"
    for verdict in node.resolution.refused:
        hint = f" ({verdict.hint})" if verdict.hint else ""
        yield f"not {verdict.ref}", f"{verdict.stage}: {verdict.reason}{hint}"
    if node.options is not None:
        yield "options", ", ".join(f"{name}: {value}" for name, value in msgspec.to_builtins(node.options).items())
    if node.note:
        yield "serves by", node.note
    for replacement in node.replacements:
        yield f"replaced by {replacement.hook}", replacement.by


def _cells(cost: Cost) -> tuple[str, str, str]:
    cached = in_bytes(cost.kv_bytes) if cost.kv_bytes else ""
    numbers = [in_units(number) if number else "" for number in (cost.parameters, cost.flops)]
    mark = "" if cost.is_complete else "≥ "
    return (mark + numbers[0], mark + numbers[1], cached)


def _aligned(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    columns = max((len(cells) for _, _, cells in rows), default=0)
    cell_widths = [max(len(cells[i]) for _, _, cells in rows if cells) for i in range(columns)]
    for label, who, cells in rows:
        line = f"{label:<{widths[0]}}{_GAP}{who:<{widths[1]}}"
        shown = [f"{cell:>{width}}" for cell, width in zip(cells, cell_widths, strict=True)] if columns else []
        yield _GAP.join([line, *shown]).rstrip()


def alike(part: Node | tuple[Node, ...], found: Mapping[str, Cost]) -> list[Sequence[Node]]:
    """Group consecutive nodes of a list that are filled alike, and cost the same, all the way down."""
    if not isinstance(part, tuple):
        return [(part,)]
    return [list(group) for _, group in groupby(part, key=lambda node: _signature(node, found))]


def _signature(node: Node, found: Mapping[str, Cost]) -> object:
    parts = tuple((child.path.removeprefix(node.path), _signature(child, found)) for child in node.children())
    return (
        node.slot,
        node.resolution.chosen.ref,
        tuple(_explained(node)),
        found[node.path],
        parts,
    )


def group_label(group: Sequence[Node], parent: str) -> str:
    """Name a group of places below their parent."""
    first, last = (node.path.removeprefix(f"{parent}." if parent else "").split(".") for node in (group[0], group[-1]))
    if len(group) == 1:
        return ".".join(first)
    number = next(i for i, (one, other) in enumerate(zip(first, last, strict=True)) if one != other)
    span = f"{first[number]} to {last[number]}"
    return f"{'.'.join([*first[:number], span, *first[number + 1 :]])} ({len(group)} alike)"


def _who(node: Node) -> str:
    return node.resolution.chosen.label
