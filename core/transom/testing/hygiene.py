"""What importing a plugin does to the process, seen in another one."""

from __future__ import annotations

import atexit
import sys
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING

from transom.diagnosis.fork_server import ForkServer, fork_server
from transom.diagnosis.probe import Outcome, probe
from transom.registry.registry import default_registry
from transom.registry.scan import PREFIX, Entry
from transom.registry.verdict import unmet_requirements
from transom.testing.case import CaseSkipped, ConformanceError

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["check_import"]

_LIMIT = 300.0  # seconds for one import


def check_import(implementation: Implementation) -> None:
    """Import the plugin's module in another process, and compare the process's settings before and after.

    Args:
        implementation: whose module is imported.

    Raises:
        ConformanceError: a setting changed, something was printed, or the import failed.
        CaseSkipped: what it requires is not installed.
    """
    if implementation.builder is not None:
        raise CaseSkipped("it was registered by a running program: there is no module to import")
    card = implementation.card
    unmet = () if card is None else unmet_requirements(card.requires)
    if unmet:
        raise CaseSkipped(f"it requires {', and '.join(complaint for _, complaint in unmet)}")
    entry, module = _entry(implementation), implementation.module
    found = next(outcome for outcome in _probed(_entries_of(implementation), tuple(sys.path)) if outcome.entry == entry)
    if found.status != "ok":
        raise ConformanceError(f"importing {module} failed: {found.what}\n{found.traceback or ''}")
    if found.changes:
        raise ConformanceError(f"importing {module} changes {'; '.join(found.changes)}")
    if found.printed:
        raise ConformanceError(f"importing {module} prints {found.printed[:200]!r}")


def _entry(implementation: Implementation) -> Entry:
    slot, name, value = implementation.slot, implementation.name, implementation.value
    return Entry(f"{PREFIX}{slot}", name, value, implementation.distribution, implementation.version, "")


def _entries_of(implementation: Implementation) -> tuple[Entry, ...]:
    """Give all that a distribution registers for slots, so that one process serves all of it."""
    others = [
        other
        for other in default_registry().implementations()
        if other.builder is None
        and other.distribution == implementation.distribution
        and not (other.card and unmet_requirements(other.card.requires))
    ]
    return tuple(dict.fromkeys(map(_entry, [*others, implementation])))


@lru_cache(maxsize=64)
def _probed(entries: tuple[Entry, ...], path: tuple[str, ...]) -> tuple[Outcome, ...]:
    """Import entries one after another in a process of their own that has this search path."""
    session = probe(entries, limit=_LIMIT, with_state=True, server=_server())
    if session.error is not None:
        raise ConformanceError(f"nothing of {entries[0].distribution} can be imported: {session.error}")
    return session.outcomes


@lru_cache(maxsize=1)
def _server() -> ForkServer | None:
    """Give the server of this process; it is ended with it."""
    context = ExitStack()
    atexit.register(context.close)
    return context.enter_context(fork_server(with_state=True))
