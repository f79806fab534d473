"""The registry: every implementation of every slot, by name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transom.errors import (
    AmbiguousNameError,
    DuplicateNameError,
    PluginImportError,
    PolicyError,
    RegistryError,
    UnknownImplementationError,
    UnknownSlotError,
)
from transom.registry.implementation import REGISTERED, Implementation, import_object
from transom.registry.names import is_name, near, normalise, split_reference
from transom.registry.policy import Policy
from transom.registry.scan import Entry, Index, Problem, scan
from transom.registry.signatures import builder_mismatches
from transom.registry.table import Table
from transom.slots import SLOT_ALIASES, SLOTS, Slot

__all__ = [
    "Implementation",
    "Registry",
    "default_registry",
    "list_implementations",
    "override",
    "register",
]

_LOGGER = logging.getLogger("transom")


class Registry:
    """Implementations by slot and name; safe to use from several threads.

    Args:
        index: what is installed; `None` = everything on ``sys.path``, read once, when first asked for.

    Example:
        >>> registry = default_registry()
        >>> registry.get("norm", "torch_norm").ref
        'transom/torch_norm'
    """

    def __init__(self, index: Index | None = None) -> None:
        self._index = index
        self._table: Table | None = None
        self._registered: dict[tuple[str, str], Implementation] = {}
        self._slots: dict[str, Slot] = dict(SLOTS)
        self._told: set[str] = set()
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """What the scan found."""
        with self._lock:
            if self._index is None:
                self._index = scan()
            return self._index

    @property
    def table(self) -> Table:
        """The index, sorted by slot and name."""
        with self._lock:
            if self._table is None:
                self._table = Table.of(self.index)
            return self._table

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Slots by name; iterating imports nothing, asking for a plugin's slot imports it."""
        return _Slots(self)

    def slot(self, name: str, *, asked_by: str | None = None) -> Slot:
        """Return a slot, importing it where a plugin defines it.

        Args:
            name: of the slot.
            asked_by: who asked, for errors.

        Raises:
            UnknownSlotError: when there is none of this name.
            AmbiguousNameError: when two plugins define it.
            PolicyError: when the policy denies the plugin that defines it.
            PluginImportError: when it cannot be imported or is no slot.
        """
        if name not in self._slots:
            entry = self._slot_entry(name, asked_by)
            slot = _load_slot(entry)
            with self._lock:
                self._slots.setdefault(name, slot)
        return self._slots[name]

    def implementations(self, slot: str | None = None) -> tuple[Implementation, ...]:
        """Return what is registered, by slot, core's first; nothing is imported.

        Args:
            slot: a slot, or a name that stands for several; `None` = every slot.

        Raises:
            UnknownSlotError: when there is no such slot.
        """
        if slot is None:
            names = tuple(self.slots)
        elif slot in SLOT_ALIASES:
            names = SLOT_ALIASES[slot]
        else:
            self._check_slot(slot, None)
            names = (slot,)
        return tuple(implementation for name in names for implementation in self._of(name))

    def get(self, slot: str, ref: str, *, asked_by: str | None = None) -> Implementation:
        """Return the implementation of a name; nothing is imported.

        Args:
            slot: the slot's name.
            ref: bare (``"flash_attention"``) or qualified (``"acme-attn/flash_attention"``).
            asked_by: who asked, for errors.

        Raises:
            UnknownSlotError: when there is no such slot.
            UnknownImplementationError: when nothing has this name.
            AmbiguousNameError: when several distributions have this bare name.
        """
        self._check_slot(slot, asked_by)
        distribution, name = split_reference(ref)
        registered = self._registered.get((slot, name))
        if registered is not None and distribution in (None, REGISTERED):
            return registered
        candidates = self.table.implementations[slot].get(name, ())
        if distribution is not None:
            candidates = tuple(c for c in candidates if normalise(c.distribution) == normalise(distribution))
        if not candidates:
            raise self._unknown(slot, ref, asked_by)
        if len(candidates) > 1 and not candidates[0].is_core:
            raise _ambiguous(slot, name, tuple(c.ref for c in candidates), candidates, asked_by)
        return candidates[0]

    def register(self, slot: str, name: str, builder: Callable[..., Any], replace: bool = False) -> Implementation:
        """Register a builder in this process, for notebooks and tests.

        Args:
            slot: the slot's name.
            name: to ask for it by.
            builder: a class or function that the slot's callers can call.
            replace: take the name even if it is taken.

        Returns:
            the implementation.

        Raises:
            DuplicateNameError: when the name is taken and ``replace`` was not given.
            RegistryError: when the name is malformed, or the builder does not accept what callers pass.
        """
        implementation = self._checked(slot, name, builder)
        with self._lock:
            taken = [other for other in self._of(slot) if other.name == name]
            if taken and not replace:
                raise DuplicateNameError(
                    f"{slot} {name!r} is taken.",
                    available=[other.label for other in taken],
                    hint="replace=True, or another name",
                    slot=slot,
                    name=name,
                )
            self._registered[slot, name] = implementation
        return implementation

    @contextmanager
    def override(self, slot: str, name: str, builder: Callable[..., Any]) -> Iterator[Implementation]:
        """Let a bare name mean this builder, in every thread, until the block ends.

        Args:
            slot: the slot's name.
            name: taken or not.
            builder: as in `register`.
        """
        with self._lock:
            before = self._registered.get((slot, name))
            implementation = self.register(slot, name, builder, replace=True)
        try:
            yield implementation
        finally:
            with self._lock:
                self._registered.pop((slot, name), None)
                if before is not None:
                    self._registered[slot, name] = before

    def problems(self) -> tuple[Problem, ...]:
        """Return everything that is known to be wrong: metadata, names, cards, and imports that were tried."""
        from transom.registry.contradictions import card_problems

        installed = tuple(c for c in self.implementations() if c.builder is None)
        failures = tuple(
            Problem("import", c.distribution, f"{c.slot} {c.name}", failure.what, failure.traceback)
            for c in installed
            if (failure := c.failure) is not None
        )
        return self.table.problems + card_problems(installed, self._slots) + failures

    def tell_once(self, level: int, message: str) -> None:
        """Log a message that was not logged before."""
        with self._lock:
            if message in self._told:
                return
            self._told.add(message)
        _LOGGER.log(level, "%s", message)

    def _of(self, slot: str) -> tuple[Implementation, ...]:
        """Return a slot's implementations, registered ones last."""
        installed = self.table.implementations.get(slot, {}).values()
        with self._lock:
            registered = tuple(c for (of, _), c in self._registered.items() if of == slot)
        return (*(c for candidates in installed for c in candidates), *registered)

    def _checked(self, slot: str, name: str, builder: Callable[..., Any]) -> Implementation:
        contract = self.slot(slot)
        if not is_name(name):
            raise RegistryError(
                f"{name!r} cannot be a name.", hint="letters, digits, _ . and -, but not 'auto'", slot=slot, name=name
            )
        complaints = builder_mismatches(builder, contract.builder, contract.interfaces)
        if complaints:
            raise RegistryError(
                f"{slot} {name!r} cannot be registered: the builder {'; '.join(complaints)}.",
                hint=f"see the contract, {contract.builder.__module__}.{contract.builder.__name__}",
                slot=slot,
                name=name,
                complaints=complaints,
            )
        value = f"{getattr(builder, '__module__', '?')}:{getattr(builder, '__qualname__', '?')}"
        return Implementation(slot, name, REGISTERED, "", value, builder)

    def _check_slot(self, name: str, asked_by: str | None) -> None:
        if name not in self._slots:
            self._slot_entry(name, asked_by)

    def _slot_entry(self, name: str, asked_by: str | None) -> Entry:
        """Return the entry point of a plugin's slot."""
        entries = self.table.slots.get(name, ())
        if len(entries) > 1:
            candidates = tuple(f"{entry.distribution} {entry.version}" for entry in entries)
            raise AmbiguousNameError(
                f"a slot {name!r} is defined by {len(entries)} distributions.",
                asked_by=asked_by,
                available=candidates,
                hint="uninstall all but one",
                slot=name,
                name=name,
                candidates=candidates,
            )
        if entries:
            return entries[0]
        known = (*self.slots, *SLOT_ALIASES)
        guesses = near(name, known)
        hint = "All: transom list"
        if name in SLOT_ALIASES:
            hint = f"it stands for several slots: {', '.join(SLOT_ALIASES[name])}"
        elif guesses:
            hint = f"{', '.join(guesses)}?   {hint}"
        raise UnknownSlotError(f"no slot is named {name!r}.", asked_by=asked_by, available=known, hint=hint, slot=name)

    def _unknown(self, slot: str, ref: str, asked_by: str | None) -> UnknownImplementationError:
        distribution, name = split_reference(ref)
        installed = self._of(slot)
        names = [other.name for other in installed]
        what = f"no {slot} is named {ref!r}."
        if distribution is not None:
            known = normalise(distribution) in map(normalise, self.index.distributions)
            what = f"{distribution} {'registers no' if known else 'is not installed: no'} {slot} named {name!r}."
        failures = [f"{c.label}: {c.failure.reason}" for c in installed if c.failure is not None]
        unreadable = [str(problem) for problem in self.index.problems if problem.kind in ("metadata", "entry point")]
        return UnknownImplementationError(
            what,
            asked_by=asked_by,
            available=[c.label if names.count(c.name) == 1 else f"{c.ref} ({c.version})" for c in installed],
            failed=[*failures, *unreadable],
            hint="   ".join([*self._guesses(slot, name, names), f"All: transom list {slot}"]),
            slot=slot,
            name=ref,
        )

    def _guesses(self, slot: str, name: str, names: list[str]) -> Iterator[str]:
        """Yield what a user may have meant who asked for a name that is not there."""
        guesses = near(name, names)
        if guesses:
            yield f"{', '.join(guesses)}?"
        everything = self.implementations()
        others = dict.fromkeys(other.slot for other in everything if other.name == name and other.slot != slot)
        if others and name not in names:
            yield f"{name} is for {', '.join(others)}."
        if not any(other.is_core for other in everything):
            yield "Core itself is not installed as a distribution here: pip install transom."


class _Slots(Mapping[str, Slot]):
    """Core's slots, then those of plugins, which are imported when asked for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __getitem__(self, name: str) -> Slot:
        if name not in self:
            raise KeyError(name)
        return self._registry.slot(name)

    def __contains__(self, name: object) -> bool:
        return name in SLOTS or name in self._registry.table.slots

    def __iter__(self) -> Iterator[str]:
        yield from SLOTS
        yield from self._registry.table.slots

    def __len__(self) -> int:
        return len(SLOTS) + len(self._registry.table.slots)


def _load_slot(entry: Entry) -> Slot:
    label = f"{entry.name} ({entry.distribution} {entry.version})"
    refusal = Policy.current().refusal(entry.distribution)
    if refusal is not None:
        raise PolicyError(f"the slot {label} may not be imported: {refusal}.", distribution=entry.distribution)
    slot = import_object(entry.value, f"the slot {label}", slot=entry.name, name=entry.name)
    if isinstance(slot, Slot) and slot.name == entry.name:
        return slot
    found = f"a slot named {slot.name!r}" if isinstance(slot, Slot) else f"of type {type(slot).__name__}, not a Slot"
    raise PluginImportError(
        f"the slot {label} is wrong: {entry.value} is {found}.",
        slot=entry.name,
        name=entry.name,
        reason=f"it is {found}",
        traceback=None,
    )


def _ambiguous(
    slot: str, name: str, refs: tuple[str, ...], found: tuple[Implementation, ...], asked_by: str | None
) -> AmbiguousNameError:
    return AmbiguousNameError(
        f"{slot} {name!r} is registered by {len(found)} distributions.",
        asked_by=asked_by,
        available=[f"{c.ref} ({c.version})" for c in found],
        hint=f"write {' or '.join(refs)}",
        slot=slot,
        name=name,
        candidates=refs,
    )


_DEFAULT = Registry()


def default_registry() -> Registry:
    """Return the registry of this process; what is installed is read when it is first asked."""
    return _DEFAULT


def list_implementations(slot: str | None = None) -> tuple[Implementation, ...]:
    """Return what is registered in this process's registry; nothing is imported.

    Args:
        slot: a slot's name; `None` = every slot.

    Example:
        >>> [implementation.ref for implementation in list_implementations("norm") if implementation.is_core]
        ['transom/torch_norm']
    """
    return _DEFAULT.implementations(slot)


def register(slot: str, name: str, builder: Callable[..., Any], replace: bool = False) -> Implementation:
    """Register a builder in this process, for notebooks and tests; see `Registry.register`."""
    return _DEFAULT.register(slot, name, builder, replace)


@contextmanager
def override(slot: str, name: str, builder: Callable[..., Any]) -> Iterator[Implementation]:
    """Let a bare name mean this builder until the block ends; see `Registry.override`."""
    with _DEFAULT.override(slot, name, builder) as implementation:
        yield implementation
