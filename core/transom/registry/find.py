"""What a reference that a user typed may mean, in whatever slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transom.errors import UnknownImplementationError
from transom.registry.names import near, normalise, split_reference
from transom.slots import SLOT_ALIASES

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.registry.registry import Registry

__all__ = ["find"]


def find(registry: Registry, ref: str, *, asked_by: str) -> tuple[Implementation, ...]:
    """Find what a reference may mean: ``name``, ``distribution/name``, or either behind a slot and a slash.

    Args:
        registry: where to look.
        ref: the reference.
        asked_by: who asked, for the error.

    Returns:
        every match: several slots, or distributions, may know a name.

    Raises:
        UnknownImplementationError: when nothing matches.

    Example:
        >>> from transom.registry.registry import default_registry
        >>> [each.slot for each in find(default_registry(), "linear/torch_linear", asked_by="an example")]
        ['column_linear', 'row_linear']
    """
    scope, _, rest = ref.partition("/")
    slot = scope if rest and (scope in registry.slots or scope in SLOT_ALIASES) else None
    distribution, name = split_reference(rest if slot else ref)
    candidates = registry.implementations(slot)
    owners = {c.distribution for c in candidates if distribution in (None, c.distribution)}
    owners |= {c.distribution for c in candidates if normalise(c.distribution) == normalise(distribution or "")}
    found = tuple(c for c in candidates if c.name == name and c.distribution in owners)
    if found:
        return found
    guesses = near(name, [candidate.name for candidate in candidates])
    hints = [f"{', '.join(guesses)}?"] if guesses else []
    hints += [f"{ref} is a slot: transom list {ref}"] if ref in registry.slots or ref in SLOT_ALIASES else []
    raise UnknownImplementationError(
        f"no {slot or 'implementation'} is named {rest if slot else ref!r}.",
        asked_by=asked_by,
        available=dict.fromkeys(candidate.label for candidate in candidates),
        hint="   ".join([*hints, f"All: transom list{f' {slot}' if slot else ''}"]),
        slot=slot or "",
        name=name,
    )
