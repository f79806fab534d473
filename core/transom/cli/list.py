"""`transom list`: which slots there are, and what fills them; reads data, imports neither torch nor a plugin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from transom.cli.describe import describe_all, describe_entry, describe_problem, describe_slot
from transom.cli.options import examples, json_option
from transom.cli.show_named import NAMED
from transom.cli.table import print_table
from transom.registry.registry import default_registry
from transom.registry.scan import PREFIX
from transom.slots import SLOT_ALIASES, SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transom.registry.scan import Entry, Problem

__all__ = ["command"]

_HEADINGS = ("slot", "name", "distribution", "devices", "dtypes", "features", "notes")


@click.command("list", epilog=examples("transom list", "transom list core_attention", "transom list linear --json"))
@click.argument("slot", required=False)
@json_option
def command(slot: str | None, as_json: bool) -> None:
    """List slots and the implementations that fill them.

    SLOT is a slot's name, or linear for both linears; without it, every slot is listed, and hooks and bundles, which
    take effect where a spec names them. What is wrong with an installed package is told at the end.
    """
    registry = default_registry()
    facts = describe_all(registry.implementations(slot), registry)
    problems = registry.problems()
    if as_json:
        names = SLOT_ALIASES.get(slot, (slot,)) if slot else tuple(registry.slots)
        slots = [describe_slot(name, SLOTS.get(name)) for name in names]
        named = {kind: [describe_entry(entry) for entry in registry.index.group(f"{PREFIX}{kind}")] for kind in NAMED}
        data = {"slots": slots, "implementations": facts, "problems": [describe_problem(p) for p in problems]}
        click.echo(json.dumps(data | ({} if slot else named), indent=2))
        return
    print_table(_HEADINGS, map(_row, facts), emphasised="name")
    for kind in () if slot else NAMED:
        _print_named(kind, registry.index.group(f"{PREFIX}{kind}"))
    _print_problems(problems)


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    card = facts["card"] or {}
    features = "?"
    if facts["lacks"] is not None:
        total = len(SLOTS[facts["slot"]].features)
        features = f"{total - len(facts['lacks'])} of {total}"
    return (
        facts["slot"],
        facts["name"],
        f"{facts['distribution']} {facts['version']}".strip(),
        ", ".join(card.get("devices", "?")),
        ", ".join(card.get("dtypes", "?")),
        features,
        "; ".join(facts["notes"]),
    )


def _print_named(kind: str, entries: Sequence[Entry]) -> None:
    """Print hooks or bundles, where there are some."""
    if entries:
        click.echo(f"\n{kind.capitalize()}, which take effect where a spec names them:")
        rows = [(entry.name, f"{entry.distribution} {entry.version}", entry.value) for entry in entries]
        print_table(("name", "distribution", "entry point"), rows, emphasised="name")


def _print_problems(problems: Sequence[Problem]) -> None:
    if problems:
        click.secho("\nProblems:", fg="yellow")
    for problem in problems:
        click.echo(f"  {problem}")
