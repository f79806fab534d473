"""Contenders that take turns, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.contenders.contender import BASE, check_results
from benchmarks.measure import Step, interleaved, usable
from benchmarks.settings import Settings
from benchmarks.table import ONLY, Table

__all__ = ["timed"]


def timed(
    name: str,
    page: str,
    steps: Mapping[str, Step],
    asked: Settings,
    *,
    tolerance: float,
    absent: Mapping[str, str] | None = None,
    limit: str | None = None,
    base: str | None = BASE,
    note: str = "",
    before: Callable[[], object] = lambda: None,
) -> Table:
    """Run every contender once, compare what they gave, and time them.

    Args:
        name: of the table.
        page: where it is shown.
        steps: by contender.
        asked: how to measure.
        tolerance: of what they give.
        absent: who cannot take part, and why; who fails joins them.
        limit: the step of what nobody can do without, done as torch's library does it.
        base: the step that the others are compared with.
        note: for readers.
        before: called before each step, outside of its time.

    Raises:
        DifferentFunctionError: one gave something else than the first.
    """
    running, failed, results = usable(steps)
    check_results(name, results, tolerance)
    seconds = interleaved(running, rounds=asked.rounds, clock=asked.clock, before=before)
    return Table(
        name=name,
        page=page,
        unit="s",
        samples={row: {ONLY: each} for row, each in seconds.items()},
        base=base if base in seconds else None,
        limit=limit,
        absent={**(absent or {}), **failed},
        note=note,
        taken=asked.described(),
    )
