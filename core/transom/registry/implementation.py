"""One implementation: who registered it, what its card says, and the builder behind it, imported when asked for."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transom.errors import CardError, PluginImportError
from transom.registry.names import CORE, normalise
from transom.registry.signatures import builder_mismatches
from transom.registry.submodules import submodules_complaints

if TYPE_CHECKING:
    from pathlib import Path

    from transom.registry.card import Card, CardSection
    from transom.slots.slot import Slot

__all__ = ["REGISTERED", "Implementation", "import_object"]

REGISTERED = "registered"
"""In place of a distribution for what a program registered itself."""


@dataclass(frozen=True)
class Implementation:
    """Something registered for a slot under a name. Making one imports nothing.

    Args:
        slot: the slot's name.
        name: its bare name.
        distribution: the installed distribution that provides it, or ``"registered"``.
        version: of the distribution.
        value: the entry point's value, ``"module:attribute"``.
        builder: the builder itself, where the program registered it.

    Example:
        >>> from transom.registry.registry import default_registry
        >>> linear = default_registry().get("row_linear", "torch_linear")
        >>> linear.ref, linear.value
        ('transom/torch_linear', 'transom.transformer.linear:RowLinear')
    """

    slot: str
    name: str
    distribution: str
    version: str
    value: str
    builder: Callable[..., Any] | None = field(default=None, hash=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # What was read or imported here may differ in the process that unpickles: it looks for itself.
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @property
    def ref(self) -> str:
        """The qualified name, ``distribution/name``."""
        return f"{self.distribution}/{self.name}"

    @property
    def label(self) -> str:
        """Name, distribution and version, for people."""
        owner = REGISTERED if self.builder is not None else f"{self.distribution} {self.version}"
        return f"{self.name} ({owner})"

    @property
    def is_core(self) -> bool:
        """Whether core provides it."""
        return self.builder is None and normalise(self.distribution) == CORE

    @property
    def module(self) -> str:
        """The module that the entry point refers to."""
        return self.value.partition(":")[0].strip()

    @property
    def card(self) -> CardSection | None:
        """What its card declares; `None` when it has none, or a broken one (then `card_error` says why)."""
        return self._card[0]

    @property
    def card_error(self) -> CardError | None:
        """What is wrong with its card."""
        return self._card[1]

    @property
    def card_file(self) -> Path | None:
        """The card's path, `None` where there is none."""
        from transom.registry.card import find_card

        return None if self.builder is not None else find_card(self.module)

    @property
    def failure(self) -> PluginImportError | None:
        """What went wrong when it was imported; `None` as long as nobody asked for it."""
        outcome = self.__dict__.get("_outcome")
        return outcome if isinstance(outcome, PluginImportError) else None

    @cached_property
    def _card(self) -> tuple[CardSection | None, CardError | None]:
        from transom.registry.card import read_card

        path = self.card_file
        if path is None:
            return None, None
        try:
            card: Card = read_card(path, distribution=self.distribution)
        except CardError as error:
            return None, error
        return card.sections.get((self.slot, self.name)), None

    @cached_property
    def _outcome(self) -> Callable[..., Any] | PluginImportError:
        """The builder, or what its import raised: a module that failed is not executed again."""
        if self.builder is not None:
            return self.builder
        try:
            subject = f"{self.slot} {self.label}"
            return import_object(self.value, subject, slot=self.slot, name=self.name)  # type: ignore[no-any-return]
        except PluginImportError as error:
            return error

    def load(self) -> Callable[..., Any]:
        """Import and return the builder.

        Raises:
            PluginImportError: when the import failed in any way, `SystemExit` included; the cause is chained, and
                `traceback` keeps its text.
        """
        if isinstance(self._outcome, PluginImportError):
            raise self._outcome.with_traceback(None)
        return self._outcome

    def load_for(self, slot: Slot) -> Callable[..., Any]:
        """Import and return the builder, and make sure that the slot's callers can call it.

        Raises:
            PluginImportError: when the import failed, or what was imported does not fit the slot.
        """
        builder = self.load()
        if self.__dict__.get("_fits") is slot:  # neither changes, and a plan asks for each of its places
            return builder
        complaints = (*builder_mismatches(builder, slot.builder, slot.interfaces), *submodules_complaints(builder))
        if complaints:
            raise PluginImportError(
                f"{slot.name} {self.label} does not fit its slot: {self.value} {'; '.join(complaints)}.",
                hint=f"see the contract, {slot.builder.__module__}.{slot.builder.__name__}",
                slot=slot.name,
                name=self.name,
                reason=f"its builder {'; '.join(complaints)}",
                traceback=None,
            )
        self.__dict__["_fits"] = slot
        return builder


def import_object(value: str, subject: str, *, slot: str, name: str) -> Any:
    """Import what an entry point refers to.

    Args:
        value: ``"module:attribute"``.
        subject: what is imported, for the error's text.
        slot: for the error.
        name: for the error.

    Raises:
        PluginImportError: when anything but `KeyboardInterrupt` was raised.
    """
    module, _, attributes = value.partition("[")[0].partition(":")
    try:
        return reduce(getattr, attributes.strip().split("."), import_module(module.strip()))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program
        raise PluginImportError(
            f"{subject} cannot be imported: {_brief(error)}",
            asked_by=value,
            slot=slot,
            name=name,
            reason=f"it cannot be imported: {_brief(error)}",
            traceback="".join(traceback.format_exception(error)),
        ) from error


def _brief(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose text cannot be made
        return type(error).__name__
