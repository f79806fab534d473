"""Tables as pictures: bars of times, lines of curves. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import ONLY, Table

__all__ = ["draw"]


def draw(stem: Path, tables: Sequence[Table]) -> list[Path]:
    """Draw tables under each other, as PNG and SVG.

    Args:
        stem: of the files, without suffix.
        tables: of one page; those without numbers are left out.

    Returns:
        the files; none where there is nothing to draw, or no matplotlib.
    """
    drawn = [table for table in tables if table.samples and (table.axis or table.columns == [ONLY])]
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return []
    if not drawn:
        return []
    heights = [3.5 if table.axis else 0.8 + 0.25 * len(table.samples) for table in drawn]
    with rc_context({"svg.hashsalt": "transom", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, sum(heights)), layout="constrained")
        axes = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
        for place, table in zip(axes, drawn, strict=True):
            (_lines if table.axis else _bars)(place, table)
        paths = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _bars(axes: Any, table: Table) -> None:
    rows = sorted(table.samples, key=table.median, reverse=True)
    relative = table.base is not None
    values = [table.ratio(row, table.base) if table.base else table.median(row) for row in rows]
    axes.barh(range(len(rows)), values, color=[_colour(table, row) for row in rows])
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"{table.name} ({f'relative to {table.base}' if relative else table.unit})", fontsize=9)
    if relative:
        axes.axvline(1.0, color="black", linewidth=1)


def _colour(table: Table, row: str) -> str:
    if row == table.limit:
        return "tab:red"
    return "tab:blue" if row.startswith("transom") else "black" if row == table.base else "tab:gray"


def _lines(axes: Any, table: Table) -> None:
    for row, columns in table.samples.items():
        xs = [float(column) for column in columns]
        ys = [table.median(row, column) for column in columns]
        axes.plot(xs, ys, marker="o", markersize=3, label=f"{row} (slope {table.slope(row):.2f})")
    if table.unit == "s":
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(table.axis, fontsize=8)
    axes.set_ylabel(table.unit, fontsize=8)
    axes.set_title(table.name, fontsize=9)
    axes.legend(fontsize=7)
