"""What data alone tells about an implementation, for `transom list` and `transom show`; nothing is imported."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from transom.registry.devices import missing_device
from transom.registry.policy import Policy
from transom.registry.verdict import unmet_requirements
from transom.slots import SLOTS

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.registry.registry import Registry
    from transom.registry.scan import Entry, Problem
    from transom.slots import Slot

__all__ = [
    "describe_all",
    "describe_entry",
    "describe_options",
    "describe_problem",
    "describe_slot",
    "own_documentation",
]


def describe_all(implementations: Iterable[Implementation], registry: Registry) -> list[dict[str, Any]]:
    """Give everything that is known about implementations as plain data.

    Args:
        implementations: some of the registry's.
        registry: what else is registered decides whether a bare name is enough.

    Returns:
        one mapping each. ``names`` holds what one may ask for it by; ``card`` is `None` where nothing is declared;
        ``unmet`` holds one complaint a requirement that is not met; ``no_device`` says why the device that the card
        names is not here, `None` = it is, or only torch can tell; ``lacks`` holds the slot's features that the card
        does not declare, `None` where that cannot be said; ``notes`` a few words on each of these that a reader should
        know.
    """
    policy = Policy.current()
    counts = Counter((other.slot, other.name) for other in registry.implementations())
    described = []
    for implementation in implementations:
        is_bare = implementation.is_core or counts[implementation.slot, implementation.name] == 1
        facts = _facts(implementation, policy) | {"names": [implementation.name] * is_bare + [implementation.ref]}
        described.append(facts | {"notes": list(_notes(facts))})
    return described


def _facts(implementation: Implementation, policy: Policy) -> dict[str, Any]:
    card = implementation.card
    slot = SLOTS.get(implementation.slot)
    return {
        "slot": implementation.slot,
        "name": implementation.name,
        "ref": implementation.ref,
        "distribution": implementation.distribution,
        "version": implementation.version,
        "entry_point": implementation.value,
        "is_default": slot is not None and implementation.is_core and slot.default == implementation.name,
        "forbidden": policy.refusal(implementation.distribution),
        "card_file": None if implementation.card_file is None else str(implementation.card_file),
        "card_error": None if implementation.card_error is None else str(implementation.card_error),
        "card": None if card is None else msgspec.to_builtins(card),
        "unmet": [] if card is None else [complaint for _, complaint in unmet_requirements(card.requires)],
        "no_device": None if card is None else missing_device(card.devices),
        "lacks": None if card is None or slot is None else [f for f in slot.features if f not in card.features],
    }


def _notes(facts: dict[str, Any]) -> Iterator[str]:
    if facts["is_default"]:
        yield "default"
    if facts["card_error"]:
        yield "its card is broken"
    elif facts["card"] is None:
        yield "undeclared"
    if facts["forbidden"]:
        yield f"forbidden: {facts['forbidden']}"
    if len(facts["names"]) == 1:
        yield f"ask for {facts['ref']}"
    if facts["card"] and facts["card"]["deprecated"]:
        yield "deprecated"
    if facts["unmet"]:
        install = facts["card"]["install"]
        yield f"requires: {'; '.join(facts['unmet'])}{f' ({install})' if install else ''}"
    elif facts["no_device"]:
        yield f"hardware: {facts['no_device']}"


def describe_slot(name: str, slot: Slot | None) -> dict[str, Any]:
    """Give a slot as plain data; of a plugin's slot only the name is known before it is imported."""
    if slot is None:
        return {"name": name}
    api = ".".join(map(str, slot.api))
    facts = {"name": name, "kind": slot.kind, "api": api, "summary": slot.summary, "default": slot.default}
    return facts | {"features": dict(slot.features)}


def describe_entry(entry: Entry) -> dict[str, str]:
    """Give a hook or a bundle as plain data."""
    return {
        "name": entry.name,
        "ref": f"{entry.distribution}/{entry.name}",
        "distribution": entry.distribution,
        "version": entry.version,
        "entry_point": entry.value,
    }


def describe_options(found: Any) -> dict[str, Any] | None:
    """Return the JSON Schema of the options that an imported implementation or hook takes; `None` = it takes none."""
    from transom.specs.schema import documented

    declared = getattr(found, "Options", None)
    if declared is None:
        return None
    (reference,), definitions = msgspec.json.schema_components([declared], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = definitions.pop(reference["$ref"].rpartition("/")[2])
    schema["description"], meanings = documented(declared)
    for name, meaning in meanings.items():
        schema["properties"].get(name, {})["description"] = meaning
    return schema | ({"$defs": definitions} if definitions else {})


def own_documentation(found: Any) -> str:
    """Return the docstring of something that was imported, and not one that its class inherits."""
    text = vars(found).get("__doc__") if isinstance(found, type) else found.__doc__
    return inspect.cleandoc(text or "")


def describe_problem(problem: Problem) -> dict[str, str]:
    """Give a problem as plain data."""
    return {
        "kind": problem.kind,
        "distribution": problem.distribution,
        "where": problem.where,
        "what": problem.what,
    }
