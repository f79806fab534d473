"""A plan as a tree of text: who fills each place, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transom.specs.plan import Node, Plan

__all__ = ["render_plan"]


def render_plan(plan: Plan) -> str:
    """Draw the tree; consecutive layers that are alike are drawn once.

    Example:
        >>> from transom import plan
        >>> print(str(plan("tiny-llama")).splitlines()[0])
        tiny-llama: decoder (transom 0.1.0), float32 on cpu, to train
    """
    context = plan.context
    head = f"{plan.spec.name}: {_who(plan.root)}, {context.dtype} on {context.device}, to {context.mode}"
    rows = list(_rows(plan.root, ""))
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join([head, *(f"{label:<{width}}  {who}".rstrip() for label, who in rows)])


def _rows(node: Node, indent: str) -> Iterator[tuple[str, str]]:
    groups = [group for part in node.parts.values() for group in _alike(part)]
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        first = group[0]
        label = _label(group, node.path)
        yield f"{indent}{'└─' if last else '├─'} {label}", f"{first.slot}: {_who(first)}"
        deeper = indent + ("   " if last else "│  ")
        bar = "│  " if first.parts else "   "
        for verdict in first.resolution.verdicts:
            if not verdict.ok:
                hint = f" ({verdict.hint})" if verdict.hint else ""
                yield f"{deeper}{bar}not {verdict.ref}", f"{verdict.stage}: {verdict.reason}{hint}"
        yield from _rows(first, deeper)


def _alike(part: Node | tuple[Node, ...]) -> list[Sequence[Node]]:
    if not isinstance(part, tuple):
        return [(part,)]
    return [list(group) for _, group in groupby(part, key=_signature)]


def _signature(node: Node) -> object:
    parts = tuple(
        (name, tuple(_signature(n) for n in (part if isinstance(part, tuple) else (part,))))
        for name, part in node.parts.items()
    )
    refusals = tuple((v.ref, v.stage, v.reason) for v in node.resolution.verdicts)
    return (node.slot, node.resolution.chosen.ref, refusals, repr(node.options), parts)


def _label(group: Sequence[Node], parent: str) -> str:
    names = [node.path.removeprefix(f"{parent}." if parent else "") for node in (group[0], group[-1])]
    return names[0] if len(group) == 1 else f"{names[0]} to {names[1].rpartition('.')[2]} ({len(group)} alike)"


def _who(node: Node) -> str:
    return node.resolution.chosen.label
