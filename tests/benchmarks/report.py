"""Tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.table import ONLY, Table

__all__ = ["amount", "markdown", "page"]


def page(title: str, introduction: str, tables: Sequence[Table], picture: str | None) -> str:
    """Write a page: what it shows, a picture, and every table with what it was measured on.

    Args:
        title: of the page.
        introduction: Markdown.
        tables: in order.
        picture: name of a file beside the page; `None` = none.
    """
    lines = [f"# {title}", "", introduction.strip(), ""]
    if picture is not None:
        lines += [f"![{title}]({picture})", ""]
    shared = _shared([table.taken for table in tables])
    lines += [*(f"- {name}: {value}" for name, value in shared.items()), ""] if shared else []
    for table in tables:
        lines += [f"## {table.name}", "", *markdown(table), ""]
        own = {name: value for name, value in table.taken.items() if name not in shared}
        if own:
            lines += ["; ".join(f"{name}: {value}" for name, value in own.items()) + ".", ""]
    lines += [] if tables else ["Nothing of this has been measured yet."]
    return "\n".join(lines).rstrip() + "\n"


def _shared(taken: Sequence[dict[str, str] | object]) -> dict[str, str]:
    """Give what holds for all tables, which then need not repeat it."""
    dicts = [each for each in taken if isinstance(each, dict)]
    first = dicts[0] if dicts else {}
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in dicts)}


def markdown(table: Table) -> list[str]:
    """Write a table, its note, and who is absent."""
    lines: list[str] = []
    if table.samples:
        rows = _ranked(table) if table.columns == [ONLY] else _by_column(table)
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---" + "|--:" * (len(rows[0]) - 1) + "|")
    lines += ["", table.note] if table.note else []
    lines += ["", "Not here: " + "; ".join(f"{name} ({why})" for name, why in table.absent.items()) + "."] * bool(
        table.absent
    )
    return lines


def _ranked(table: Table) -> list[list[str]]:
    """List rows by their medians, with ratios to the base and to the limit."""
    others = [each for each in (table.base, table.limit) if each in table.samples]
    rows = [["", "median", "least", *(f"to {each}" for each in others)]]
    for row in sorted(table.samples, key=table.median):
        cells = [amount(table.median(row), table.unit), amount(table.least(row), table.unit)]
        rows.append([row, *cells, *(f"{table.ratio(row, each):.2f}" for each in others if each)])
    return rows


def _by_column(table: Table) -> list[list[str]]:
    """List medians by column, with the slope where columns are numbers, and the ratio to the base."""
    slopes = ["slope"] if table.axis else []
    rows = [[table.axis or "", *table.columns, *slopes]]
    for row in table.samples:
        cells = [_cell(table, row, column) for column in table.columns]
        rows.append([row, *cells, *([f"{table.slope(row):.2f}"] if table.axis else [])])
    return rows


def _cell(table: Table, row: str, column: str) -> str:
    if column not in table.samples[row]:
        return "-"
    text = amount(table.median(row, column), table.unit)
    if table.base is None or table.base == row or table.axis or column not in table.samples.get(table.base, {}):
        return text
    return f"{text} ({table.ratio(row, table.base, column):.2f})"


def amount(number: float, unit: str) -> str:
    """Write a number with its unit, in three digits.

    Example:
        >>> amount(0.0123, "s"), amount(3 * 2**20, "bytes"), amount(0.5, "share"), amount(7.0, "")
        ('12.3 ms', '3 MiB', '50.0 %', '7')
    """
    if math.isnan(number):
        return "-"
    if unit == "s":
        scale, name = next(
            pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if number >= pair[0] or pair[1] == "us"
        )
        return f"{number / scale:.3g} {name}" if number / scale < 1000 else f"{number / scale:.0f} {name}"
    if unit == "bytes":
        return f"{number / 2**20:.0f} MiB"
    return f"{100 * number:.1f} %" if unit == "share" else f"{number:g}"
