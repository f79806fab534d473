"""`transom show`: everything that is known about one implementation; reads data unless asked to import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from transom.cli.describe import describe_all, describe_options, describe_slot, own_documentation
from transom.cli.labelled import glossary, labelled, option_lines
from transom.cli.options import examples, json_option
from transom.cli.show_named import NAMED, describe_named, render_named
from transom.cli.show_slot import describe_contract, render_contract, slots_named
from transom.errors import PluginImportError
from transom.registry.find import find
from transom.registry.registry import default_registry
from transom.slots import SLOTS

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.registry.registry import Registry

__all__ = ["command"]


@click.command(
    "show",
    epilog=examples(
        "transom show dot_product",
        "transom show transom/torch_norm",
        "transom show row_linear/torch_linear --json",
        "transom show mlp/mlp --import",
        "transom show core_attention",
        "transom show slots/mlp",
        "transom show hooks/NAME --import",
    ),
)
@click.argument("ref", metavar="[SLOT/]REF")
@click.option("--import", "with_import", is_flag=True, help="Import it too, and show its documentation.")
@json_option
def command(ref: str, with_import: bool, as_json: bool) -> None:
    """Show everything that is known about one implementation, hook or bundle, or a slot's contract.

    REF is a name, or distribution/name; a slot before it says which is meant where several slots know the name, and
    hooks or bundles that one of these is. A slot's name, or slots/NAME where an implementation has the same, shows
    what its implementations must be like. Without --import only data is read.
    """
    registry = default_registry()
    kind, _, name = ref.partition("/")
    if kind in NAMED and name:
        facts = describe_named(kind, name, registry, with_import=with_import)
        click.echo(json.dumps(facts, indent=2) if as_json else render_named(facts))
        return
    slots = slots_named(ref, registry)
    if slots and not any(each.name == ref for each in registry.implementations()):
        contracts = [describe_contract(each, registry, with_import=with_import) for each in slots]
        click.echo(json.dumps(contracts, indent=2) if as_json else "\n\n".join(map(render_contract, contracts)))
        return
    found = find(registry, ref, asked_by="transom show")
    shown = describe_all(found, registry)
    for implementation, facts in zip(found, shown, strict=True):
        facts["contract"] = describe_slot(implementation.slot, SLOTS.get(implementation.slot))
        facts["options"] = _options(facts["card"])
        if with_import:
            builder = _imported(implementation, registry)
            facts["documentation"] = own_documentation(builder)
            facts["options"] = describe_options(builder) or facts["options"]
    click.echo(json.dumps(shown, indent=2) if as_json else "\n\n".join(map(_render, shown)))


def _imported(implementation: Implementation, registry: Registry) -> Any:
    """Import an implementation; where that fails, its traceback goes to stderr."""
    try:
        return implementation.load_for(registry.slot(implementation.slot))
    except PluginImportError as error:
        click.echo(error.data["traceback"] or "", err=True)
        raise


def _options(card: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON Schema of options that a card holds, or refers to."""
    declared = None if card is None else card["options"]
    return {"$ref": declared} if isinstance(declared, str) else declared


def _render(facts: dict[str, Any]) -> str:
    head = click.style(facts["name"], bold=True) + f", for slot {facts['slot']}"
    return "\n".join([head, *labelled(_rows(facts))])


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known as pairs of a label and a text of one line or several."""
    slot, card = facts["contract"], facts["card"]
    yield "distribution", f"{facts['distribution']} {facts['version']}"
    yield "ask for it as", " or ".join(facts["names"])
    yield "entry point", facts["entry_point"]
    if "kind" in slot:
        yield "slot", f"{slot['summary']} ({slot['kind']} slot, contract {slot['api']})"
        yield "contract", f"transom show slots/{slot['name']}"
    if facts["notes"]:
        yield "notes", "\n".join(facts["notes"])
    if facts["card_error"]:
        yield "card", facts["card_error"]
    elif card is None:
        yield "card", "none: it declares nothing, only its own supports() is asked"
    else:
        yield "card", facts["card_file"]
        yield from _card_rows(card)
        yield from _feature_rows(facts)
    if facts["options"]:
        yield "options", option_lines(facts["options"])
    if "documentation" in facts:
        yield "documentation", facts["documentation"] or "none"


def _card_rows(card: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "written for", f"contract {card['api']}"
    capability = card["min_compute_capability"]
    yield "devices", ", ".join(card["devices"]) + (f", compute capability {capability} or newer" if capability else "")
    yield "dtypes", ", ".join(card["dtypes"])
    yield "modes", ", ".join(card["modes"])
    yield "compiles", "yes, in one graph" if card["compiles"] else "not declared"
    yield "deterministic", "yes" if card["deterministic"] else "not declared"
    if card["includes_norm"]:
        yield "takes in", "the norm before it, whose place it fills too"
    if card["requires"]:
        yield "requires", ", ".join(card["requires"])
    if card["install"]:
        yield "install", card["install"]
    if card["deprecated"]:
        replacement = card["deprecated"]["replacement"]
        yield "deprecated", card["deprecated"]["message"] + (f"; use {replacement}" if replacement else "")


def _feature_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    meanings = facts["contract"].get("features", {})
    yield "features", glossary(facts["card"]["features"], meanings) or "none"
    if facts["lacks"]:
        yield "lacks", glossary(facts["lacks"], meanings)
