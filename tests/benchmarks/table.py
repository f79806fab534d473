"""Tables of samples: what was measured, and the arithmetic on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ONLY", "Table", "slope"]

ONLY = "value"
"""The column of a table that has just one."""

Samples = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What was measured of one thing.

    Args:
        name: what was measured, with its settings; tables of the same name replace each other.
        page: on which it is shown.
        unit: of the samples: ``"s"``, ``"bytes"``, ``"share"``, or ``""`` for counts.
        samples: by row and column, one for each round; those of a column were taken in the same rounds.
        base: the row that others are compared with; `None` = none.
        limit: the row of what nobody can do without, done as torch's library does it; `None` = unknown.
        axis: what the columns are numbers of, where they are; a slope is then fitted.
        absent: who could not take part, and why.
        note: what a reader must know of it.
        taken: when, with which settings, versions and machine.
    """

    name: str
    page: str
    unit: str
    samples: Samples
    base: str | None = None
    limit: str | None = None
    axis: str | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Of all rows, in their order."""
        return list(dict.fromkeys(column for row in self.samples.values() for column in row))

    def median(self, row: str, column: str = ONLY) -> float:
        """Of the rounds."""
        return statistics.median(self.samples[row][column])

    def least(self, row: str, column: str = ONLY) -> float:
        """Of the rounds."""
        return min(self.samples[row][column])

    def ratio(self, row: str, to: str, column: str = ONLY) -> float:
        """Compare two rows round by round: the median of the rounds' ratios."""
        pairs = zip(self.samples[row][column], self.samples[to][column], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def slope(self, row: str) -> float:
        """Fit the power with which the medians of a row grow along the axis: 1 = in proportion."""
        return slope([(float(column), self.median(row, column)) for column in self.samples[row]])

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Table:
        """Read what `to_json` gave."""
        return cls(**found)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Fit a line through the logarithms of points, by least squares; not a number where there are fewer than two."""
    if len(points) < 2:
        return math.nan
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    return statistics.linear_regression(xs, ys).slope
