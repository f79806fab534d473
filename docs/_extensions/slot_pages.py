"""Writes a page for every slot, and the support matrix, from slots and cards, when the docs are built."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx
from transom import list_implementations
from transom.registry.implementation import Implementation
from transom.slots import SLOTS, Slot

FOLDER = Path("reference/slots")
MATRIX = Path("reference/support-matrix.md")

_KINDS = {
    "kernel": "This is a *kernel slot*: the config fixes what is computed, and whoever fills the slot agrees with "
    "core's reference, gradients included.",
    "architecture": "This is an *architecture slot*: whoever fills it brings the mathematics, and keeps what is said "
    "below.",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Make Sphinx write the pages before it reads any."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}


def _write(app: Sphinx) -> None:
    source = Path(app.srcdir)
    (source / FOLDER).mkdir(parents=True, exist_ok=True)
    described: set[type] = set()
    for slot in SLOTS.values():
        _replace(source / FOLDER / f"{slot.name}.md", slot_page(slot, described))
    _replace(source / MATRIX, matrix_page(list_implementations()))


def _replace(path: Path, text: str) -> None:
    """Leave a page alone that would not change, so that Sphinx need not read it again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def slot_page(slot: Slot, described: set[type]) -> str:
    """Describe a slot: what it is for, what may be asked of it, and the Protocols that its plugins satisfy.

    Args:
        slot: the slot.
        described: classes that a page before this one describes already; those of this page are added.
    """
    paragraphs = [
        f"# `{slot.name}`",
        f"{slot.summary[0].upper()}{slot.summary[1:]}. {_KINDS[slot.kind]}",
        f"Contract version {slot.api[0]}.{slot.api[1]}. Entry-point group: `{slot.group}`. {_unnamed(slot)}",
        "To begin with a package that works and is tested:",
        f"```\ntransom new acme-{slot.name.replace('_', '-')} --slot {slot.name}\n```",
        "## Features",
        _features(slot),
        "## What is registered, what it makes, and what it is asked for",
        *(_described(each, described) for each in dict.fromkeys((slot.builder, *slot.interfaces, slot.request))),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _unnamed(slot: Slot) -> str:
    if slot.default is None:
        return "Where a spec names nobody, there is no such module: what it would join stays apart."
    return f"Unless a spec names another, it is filled by `{slot.default}`."


def _described(documented: type, described: set[type]) -> str:
    """Have autodoc describe a class; slots may share one, and one of its descriptions is in the index."""
    again = "\n   :no-index:" if documented in described else ""
    described.add(documented)
    name = f"{documented.__module__}.{documented.__qualname__}"
    return f"```{{eval-rst}}\n.. autoclass:: {name}\n   :members:{again}\n```"


def _features(slot: Slot) -> str:
    if not slot.features:
        return "A request of this slot has no features: every implementation serves all there is to ask."
    rows = [f"| `{name}` | {meaning} |" for name, meaning in slot.features.items()]
    return "\n".join(["| a card declares | when |", "|---|---|", *rows])


def matrix_page(implementations: Iterable[Implementation]) -> str:
    """Say what every installed implementation declares, a table for each slot."""
    found = list(implementations)
    tables = [_table(slot, [each for each in found if each.slot == slot.name and each.card]) for slot in SLOTS.values()]
    head = "# Support matrix\n\nWhat the cards of core, of its plugins and of the community plugins declare.\n"
    return "\n".join([head, *tables])


def _table(slot: Slot, implementations: list[Implementation]) -> str:
    names = [f"`{each.name}`" for each in implementations]
    rows = [
        ["distribution", *(each.distribution for each in implementations)],
        ["devices", *(_listed(each.card.devices) for each in implementations)],
        ["dtypes", *(_listed(each.card.dtypes) for each in implementations)],
        ["modes", *(_listed(each.card.modes) for each in implementations)],
        *(
            [f"`{feature}`", *("yes" if feature in each.card.features else "" for each in implementations)]
            for feature in slot.features
        ),
    ]
    lines = [["", *names], ["---"] * (len(names) + 1), *rows]
    return "\n".join([f"## `{slot.name}`", "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))
