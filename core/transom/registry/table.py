"""An index sorted by slot and name: what a bare name means, and whose names clash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transom.registry.implementation import Implementation
from transom.registry.names import near, normalise
from transom.registry.scan import PREFIX, Entry, Index, Problem
from transom.slots import SLOT_ALIASES, SLOTS

__all__ = ["RESERVED", "Table"]

RESERVED = frozenset({"slots", "hooks", "bundles"})
"""What follows ``transom.`` in groups that hold no implementations."""


@dataclass(frozen=True)
class Table:
    """An index, sorted.

    Args:
        implementations: by slot and bare name, core's first; several under one name come from several distributions.
        slots: entries of slots that plugins define, by name.
        problems: what the index found, and names that clash.
    """

    implementations: Mapping[str, Mapping[str, tuple[Implementation, ...]]]
    slots: Mapping[str, tuple[Entry, ...]]
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, index: Index) -> Table:
        """Sort an index; nothing is imported."""
        problems = list(index.problems)
        slots = _slots(index, problems)
        known = {*SLOTS, *slots}
        found: dict[str, dict[str, list[Implementation]]] = {name: {} for name in known}
        for entry in index.entries:
            if entry.slot in RESERVED:
                continue
            if entry.slot not in known:
                problems.append(_unknown_slot(entry, known))
                continue
            implementation = Implementation(entry.slot, entry.name, entry.distribution, entry.version, entry.value)
            found[entry.slot].setdefault(entry.name, []).append(implementation)
        problems += [
            problem for names in found.values() for candidates in names.values() for problem in _clashes(candidates)
        ]
        return cls(
            MappingProxyType({slot: _sorted(names) for slot, names in found.items()}),
            MappingProxyType(slots),
            tuple(problems),
        )


def _slots(index: Index, problems: list[Problem]) -> dict[str, tuple[Entry, ...]]:
    """Return the entries that define slots; none may take a name that has a meaning already."""
    slots: dict[str, tuple[Entry, ...]] = {}
    for entry in index.group(PREFIX + "slots"):
        if entry.name in SLOTS or entry.name in SLOT_ALIASES or entry.name in RESERVED:
            what = f"defines a slot {entry.name!r}, a name that core has taken; it is ignored"
            problems.append(Problem("slot", entry.distribution, f"[{entry.group}] {entry.name}", what))
            continue
        slots[entry.name] = (*slots.get(entry.name, ()), entry)
    return slots


def _unknown_slot(entry: Entry, known: set[str]) -> Problem:
    guesses = near(entry.slot, known)
    meant = f"; {guesses[0]!r} was meant?" if guesses else ""
    what = f"registers {entry.name!r} for a slot that does not exist, {entry.slot!r}{meant}"
    return Problem("slot", entry.distribution, f"[{entry.group}] {entry.name}", what)


def _clashes(candidates: list[Implementation]) -> list[Problem]:
    if len(candidates) == 1:
        return []
    return [
        Problem("name", c.distribution, f"[{PREFIX}{c.slot}] {c.name}", f"shares its name, use it as {c.ref}")
        for c in candidates
        if not c.is_core
    ]


def _sorted(names: dict[str, list[Implementation]]) -> Mapping[str, tuple[Implementation, ...]]:
    ordered = sorted(names.items(), key=lambda item: (not any(c.is_core for c in item[1]), item[0]))
    rank = {
        name: tuple(sorted(found, key=lambda c: (not c.is_core, normalise(c.distribution)))) for name, found in ordered
    }
    return MappingProxyType(rank)
