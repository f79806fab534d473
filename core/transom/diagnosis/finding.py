"""What was found, and whether it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transom.registry.scan import Problem

__all__ = ["Finding"]

_NOTES = frozenset({"name"})
"""Kinds of problem that stop nothing: a shared name works where it is qualified."""


@dataclass(frozen=True)
class Finding:
    """Something that a user should know about an installed distribution.

    Args:
        level: ``"wrong"`` when something must be mended, ``"note"`` when it only explains.
        distribution: whom it is about; empty = the installation as a whole.
        where: the file, or the group and name.
        what: one sentence without its full stop.
        hint: what to do about it.
        traceback: of an import that failed.
    """

    level: Literal["wrong", "note"]
    distribution: str
    where: str
    what: str
    hint: str | None = None
    traceback: str | None = None

    @classmethod
    def of(cls, problem: Problem) -> Finding:
        """Take over what the registry knows."""
        level: Literal["wrong", "note"] = "note" if problem.kind in _NOTES else "wrong"
        return cls(level, problem.distribution, problem.where, problem.what, problem.hint, problem.traceback)

    @property
    def is_wrong(self) -> bool:
        """Whether something must be mended."""
        return self.level == "wrong"

    def __str__(self) -> str:
        return f"{self.distribution or 'transom'}: {self.what} ({self.where})"
