"""A plan as one self-contained page: a diagram coloured by who fills each place, with the reasons on click.

The page needs no script and nothing from elsewhere: a click leads to the details' own anchor, and the style sheet shows
what the address names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import msgspec

from transom.registry.names import CORE, normalise
from transom.specs.render import alike, group_label, hook_label, in_bytes, in_units
from transom.specs.totals import Cost, Measured, Totals, costs, totals

if TYPE_CHECKING:
    from transom.registry.verdict import Verdict
    from transom.specs.node import Node
    from transom.specs.plan import Plan

__all__ = ["render_page"]

_HUES = (150, 55, 325, 200, 100, 290, 25)  # degrees; far apart, also where red and green look alike
_CORE_HUE = 255
_MORE_HUES = 137.5  # the golden angle keeps any number of them apart


def render_page(plan: Plan, *, measured: Measured | None = None) -> str:
    """Draw a plan as HTML.

    Args:
        plan: what to draw.
        measured: costs of places whose requests do not tell them, as `transom.costs.measure` finds them.

    Example:
        >>> from transom import plan
        >>> render_page(plan("tiny-llama")).startswith("<!doctype html>")
        True
    """
    page = _Page(plan, costs(plan, measured))
    diagram = page.block([plan.root], "")
    context = plan.context
    template = Template(files("transom").joinpath("specs", "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(plan.spec.name),
        subtitle=escape(f"{plan.root.resolution.chosen.label}, {context.dtype} on {context.device}, to {context.mode}"),
        figures="\n".join(_figures(totals(plan, measured))),
        legend="\n".join(page.legend()),
        diagram=diagram,
        refused=page.summary(),
        details="\n".join(page.details),
        footer=f"transom plan {escape(plan.spec.name)} · fingerprint <code>{plan.fingerprint[:16]}</code>",
    )


def _figures(found: Totals) -> Iterator[str]:
    cost, memory = found.cost, found.memory
    least = "" if cost.is_complete else "≥ "
    purpose = "parameters, gradients, AdamW" if memory.gradients else "parameters"
    yield _figure(least + in_units(cost.parameters), "parameters")
    yield _figure(least + in_units(cost.flops), f"FLOPs a token, forward, at {found.sequence_length} tokens")
    yield _figure(in_bytes(cost.kv_bytes), "key/value cache a token")
    yield _figure(in_bytes(memory.total), f"memory: {purpose}")


def _figure(number: str, meaning: str) -> str:
    return f"<li><b>{number}</b><span>{meaning}</span></li>"


class _Page:
    """Draws blocks and collects the details that they lead to."""

    def __init__(self, plan: Plan, found: Mapping[str, Cost]) -> None:
        self.found = found
        self.details: list[str] = []
        self.refused: list[tuple[str, int, int]] = []
        self.hooks = [hook_label(hook) for hook in plan.hooks]
        chosen = [node.resolution.chosen for node in plan.nodes()]
        self.places = Counter(f"{each.distribution} {each.version}".strip() for each in chosen)
        names = sorted({normalise(each.distribution) for each in chosen} - {CORE})
        self.hues = {CORE: float(_CORE_HUE)} | {name: _hue(i) for i, name in enumerate(names)}

    def legend(self) -> Iterator[str]:
        """Yield the distributions, core first."""
        for label, count in sorted(self.places.items(), key=lambda item: (normalise(item[0].split()[0]) != CORE, item)):
            style = self._style(label.split()[0])
            places = f"{count} place{'s' if count > 1 else ''}"
            yield f"<li><i class='swatch' {style}></i>{escape(label)} <small>{places}</small></li>"

    def block(self, group: Sequence[Node], parent: str) -> str:
        """Draw a group of alike places, with all that is inside the first of them."""
        node = group[0]
        number = self._detail(group, parent)
        groups = [inner for part in node.parts.values() for inner in alike(part, self.found)]
        inner = "\n".join(self.block(each, node.path) for each in groups)
        classes = ["block", *(["outer"] if groups else []), *(["many"] if len(group) > 1 else [])]
        across = " across" if all(not each[0].parts for each in groups) else ""
        flow = f"<div class='flow{across}'>\n{inner}\n</div>" if groups else ""
        style = self._style(node.resolution.chosen.distribution)
        return f"<div class='{' '.join(classes)}' {style}>{self._head(group, parent, number)}{flow}</div>"

    def summary(self) -> str:
        """List the places at which somebody was refused."""
        if not self.refused:
            return "<p>Nobody who was asked for was refused.</p>"
        rows = "".join(
            f"<p><a href='#n{number}'><b>{escape(name)}</b> <span class='no'>{count} refused</span></a></p>"
            for name, number, count in self.refused
        )
        return f"<h3>Refused</h3>{rows}"

    def _head(self, group: Sequence[Node], parent: str, number: int) -> str:
        node = group[0]
        refused = len(node.resolution.refused)
        marks = f"<span class='times'>&times;{len(group)}</span>" if len(group) > 1 else ""
        marks += f"<span class='no'>{refused} refused</span>" if refused else ""
        cost = self.found[node.path]
        unit = "" if node.path else " parameters"
        size = f"<span class='cost'>{in_units(cost.parameters)}{unit}</span>" if cost.parameters else ""
        name = escape(_name(group, parent))
        who = escape(node.resolution.chosen.name)
        return f"<a href='#n{number}'><span class='name'>{name}</span><span class='who'>{who}</span>{marks}{size}</a>"

    def _detail(self, group: Sequence[Node], parent: str) -> int:
        node, number = group[0], len(self.details)
        refusals = node.resolution.refused
        where = node.path or "the model"
        if refusals:
            self.refused.append((group_label(group, "") or where, number, len(refusals)))
        rows = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in self._facts(node))
        body = f"<h2>{_breakable(group_label(group, '') or where)}</h2><dl>{rows}</dl>"
        body += "".join([f"<h3>Refused before ({len(refusals)})</h3>", *map(_refusal, refusals)]) if refusals else ""
        self.details.append(f"<section id='n{number}'>{body}</section>")
        return number

    def _facts(self, node: Node) -> Iterator[tuple[str, str]]:
        chosen, cost = node.resolution.chosen, self.found[node.path]
        owner = f"{chosen.distribution} {chosen.version}".strip()
        yield "slot", f"<code>{escape(node.slot)}</code>"
        yield "chosen", f"<b>{escape(chosen.name)}</b>"
        yield "from", f"<span class='chip' {self._style(chosen.distribution)}>{escape(owner)}</span>"
        yield "is", f"<code>{_breakable(chosen.value)}</code>"
        yield "asked for", f"<code>{escape(' | '.join(node.resolution.asked))}</code>"
        yield "by", _breakable(node.asked_by)
        if node.options is not None:
            yield "options", f"<code>{escape(_plain(msgspec.to_builtins(node.options)))}</code>"
        if node.note:
            yield "serves by", escape(node.note)
        for each in node.replacements:
            yield "replaced", f"by <code>{_breakable(each.by)}</code> of the hook <b>{escape(each.hook)}</b>"
        if not node.path:
            yield from (("hook", f"<code>{escape(text)}</code>") for text in self.hooks)
        if node.request.features:
            yield "must have", escape(", ".join(sorted(node.request.features)))
        least = "" if cost.is_complete else "≥ "
        if cost.parameters:
            yield "parameters", f"{least}{cost.parameters:,}"
        if cost.flops:
            yield "FLOPs", f"{least}{cost.flops:,} a token"
        if cost.kv_bytes:
            yield "cache", f"{cost.kv_bytes:,} bytes a token"

    def _style(self, distribution: str) -> str:
        return f"style='--hue:{self.hues.get(normalise(distribution), _CORE_HUE):g}'"


def _hue(index: int) -> float:
    return float(_HUES[index]) if index < len(_HUES) else (index * _MORE_HUES) % 360


def _name(group: Sequence[Node], parent: str) -> str:
    label = group_label(group, parent).partition(" (")[0]
    return label or "model"


def _breakable(text: str) -> str:
    """Let a long path break after its dots and underscores rather than anywhere."""
    return re.sub(r"([._:])(?=\w)", r"\1<wbr>", escape(text))


def _plain(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in options.items())


def _refusal(verdict: Verdict) -> str:
    hint = f"<p class='hint'>{escape(verdict.hint)}</p>" if verdict.hint else ""
    return (
        f"<div class='refusal'><b>{escape(verdict.ref)}</b> <span class='stage'>{verdict.stage}</span>"
        f"<p>{escape(verdict.reason)}</p>{hint}</div>"
    )
