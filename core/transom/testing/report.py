"""What came out of the cases of one implementation: for people, as data, and as Markdown."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transom.testing.case import Case, CaseSkipped, ConformanceError, beyond_kit

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["AREAS", "Outcome", "Report", "run_case", "run_cases"]

Status = Literal["passed", "failed", "skipped"]

AREAS: Mapping[str, str] = {
    "card": "declares what it supports, and can be imported",
    "refused": "what its card does not declare is refused, with a reason",
    "declared": "serves every feature that its card declares",
    "import": "importing it changes nothing in the process",
    "agreement": "outputs and gradients agree with the reference",
    "contract": "keeps what its slot's contract promises",
    "module": "survives meta devices, state, pickling, recomputation, compilation",
    "parallel": "agrees with one process when split over several",
}
"""What the cases of each area show together."""


@dataclass(frozen=True)
class Outcome:
    """What came out of one case.

    Args:
        case: that was run.
        status: ``"passed"``, ``"failed"`` or ``"skipped"``.
        detail: why it failed or was skipped.
        seconds: that it took.
    """

    case: Case
    status: Status
    detail: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "case": self.case.id,
            "shows": self.case.shows,
            "status": self.status,
            "detail": self.detail,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """What came out of the cases of one implementation.

    Args:
        implementation: that was tested.
        outcomes: one a case.
    """

    implementation: Implementation
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def skipped(self) -> tuple[Outcome, ...]:
        """Those that could not be run."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "skipped")

    def alike(self, status: Status) -> tuple[tuple[Outcome, ...], ...]:
        """Those of a status, together where the same detail explains them.

        Args:
            status: ``"failed"`` or ``"skipped"``.

        Returns:
            groups, in the order of their first cases.
        """
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.status == status:
                groups.setdefault(outcome.detail, []).append(outcome)
        return tuple(map(tuple, groups.values()))

    @property
    def conforms(self) -> bool:
        """Whether nothing failed and something passed."""
        return not self.failed and any(outcome.status == "passed" for outcome in self.outcomes)

    def by_area(self) -> dict[str, Counter[str]]:
        """Count the outcomes of each area by status: the areas of every slot, then those that a slot has of its own."""
        counts: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            counts.setdefault(outcome.case.area, Counter())[outcome.status] += 1
        return {area: counts[area] for area in [*AREAS, *counts] if area in counts}

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        chosen = self.implementation
        return {
            "slot": chosen.slot,
            "ref": chosen.ref,
            "distribution": chosen.distribution,
            "version": chosen.version,
            "conforms": self.conforms,
            "environment": _environment(),
            "cases": [outcome.to_dict() for outcome in self.outcomes],
        }

    def to_markdown(self) -> str:
        """Write a table for a README: one row an area."""
        chosen = self.implementation
        verdict = "conforms" if self.conforms else f"**{len(self.failed)} cases fail**"
        lines = [
            f"### `{chosen.name}` ({chosen.slot}), {chosen.distribution} {chosen.version}: {verdict}",
            "",
            "| area | what it shows | passed | failed | skipped |",
            "|---|---|---:|---:|---:|",
        ]
        for area, count in self.by_area().items():
            numbers = f"{count['passed']} | {count['failed']} | {count['skipped']}"
            lines.append(f"| {area} | {AREAS.get(area, '')} | {numbers} |")
        tested = ", ".join(f"{name} {version}" for name, version in _environment().items())
        return "\n".join([*lines, "", f"Tested with {tested}.", ""])


def run_case(case: Case) -> Outcome:
    """Run one case; what it raises becomes part of the outcome."""
    start = time.perf_counter()
    status: Status = "passed"
    detail = ""
    try:
        case.run()
    except CaseSkipped as reason:
        status, detail = "skipped", str(reason)
    except ConformanceError as error:
        status, detail = "failed", str(error)
    except Exception as error:  # the implementation's own
        trace = traceback.format_exception(type(error), error, beyond_kit(error.__traceback__))
        status, detail = "failed", "".join(trace).rstrip()
    return Outcome(case, status, detail, time.perf_counter() - start)


def run_cases(
    implementation: Implementation, cases: Iterable[Case], *, on_outcome: Callable[[Outcome], None] | None = None
) -> Report:
    """Run cases one after another.

    Args:
        implementation: whose cases they are.
        cases: to run.
        on_outcome: is called after each, to show progress.
    """
    outcomes = []
    for case in cases:
        outcome = run_case(case)
        if on_outcome is not None:
            on_outcome(outcome)
        outcomes.append(outcome)
    return Report(implementation, tuple(outcomes))


def _environment() -> dict[str, str]:
    import platform

    import torch

    from transom import __version__

    found = {"transom": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found
