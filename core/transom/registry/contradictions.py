"""Where cards and entry points contradict each other, and what cards say that no slot knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from transom.registry.card import Card, read_card
from transom.registry.implementation import Implementation
from transom.registry.names import near
from transom.registry.scan import Problem
from transom.slots.slot import Slot

__all__ = ["card_problems"]


def card_problems(implementations: Iterable[Implementation], slots: Mapping[str, Slot]) -> tuple[Problem, ...]:
    """Read the cards of all implementations and return what is wrong with them; nothing is imported.

    Args:
        implementations: installed ones.
        slots: the slots whose features are known.
    """
    by_file: defaultdict[Path, list[Implementation]] = defaultdict(list)
    for implementation in implementations:
        path = implementation.card_file
        if path is not None:
            by_file[path].append(implementation)
    return tuple(problem for path, owners in by_file.items() for problem in _problems(path, owners, slots))


def _problems(path: Path, owners: list[Implementation], slots: Mapping[str, Slot]) -> Iterator[Problem]:
    broken = next((owner for owner in owners if owner.card_error is not None), None)
    if broken is not None:
        error = broken.card_error
        yield Problem(
            "card", broken.distribution, str(path), str(error).splitlines()[0], hint=getattr(error, "hint", None)
        )
        return
    card = read_card(path, distribution=owners[0].distribution)
    entries = {(owner.slot, owner.name): owner for owner in owners}
    for owner in owners:
        if (owner.slot, owner.name) not in card.sections:
            what = f"has no section [{owner.slot}.{owner.name}], which the entry point promises"
            yield Problem("card", owner.distribution, str(path), what)
    for slot, name in card.sections:
        if (slot, name) not in entries:
            what = f"has a section [{slot}.{name}], for which there is no entry point"
            yield Problem("card", owners[0].distribution, str(path), what)
    yield from _unknown_features(path, card, entries, slots)


def _unknown_features(
    path: Path, card: Card, entries: Mapping[tuple[str, str], Implementation], slots: Mapping[str, Slot]
) -> Iterator[Problem]:
    for (slot, name), owner in entries.items():
        section = card.sections.get((slot, name))
        if section is None or slot not in slots:
            continue
        for feature in sorted(set(section.features) - set(slots[slot].features)):
            guesses = near(feature, slots[slot].features)
            meant = f"; {guesses[0]!r} was meant?" if guesses else ""
            what = f"[{slot}.{name}] declares {feature!r}, which is no feature of {slot}{meant}"
            yield Problem("card", owner.distribution, str(path), what)
