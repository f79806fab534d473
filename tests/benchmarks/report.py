"""Figures as Markdown, JSON and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from measure import Table

BASE = "monolith"


def markdown(title: str, tables: Sequence[Table], machine: dict[str, str]) -> str:
    """Write a page: what was measured on, then a table for each workload."""
    lines = [f"# {title}", "", f"Measured on {datetime.now(UTC):%Y-%m-%d} by `make bench`:", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", "Ratios are medians over the rounds of what was measured in the same round; below 1 is faster.", ""]
    for table in tables:
        lines += [f"## {table.workload}", "", *_rows(table), ""]
        lines += [f"Not here: {name} ({why})." for name, why in table.absent.items()]
    return "\n".join(lines).rstrip() + "\n"


def _rows(table: Table) -> list[str]:
    limited = table.limit in table.figures
    head = ["contender", "median", "least", f"to the {BASE}", *([f"to {table.limit}"] if limited else [])]
    rows = [head, ["---"] * len(head)]
    for name, figure in sorted(table.figures.items(), key=lambda item: item[1].median):
        row = [name, _time(figure.median), _time(figure.least), f"{table.ratio(name, BASE):.2f}"]
        rows.append(row + ([f"{table.ratio(name, table.limit):.2f}"] if table.limit and limited else []))
    return ["| " + " | ".join(row) + " |" for row in rows]


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def write(folder: Path, name: str, title: str, tables: Sequence[Table], machine: dict[str, str]) -> list[Path]:
    """Write the page, the data, and a picture of the ratios where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    page.write_text(markdown(title, tables, machine), encoding="utf-8")
    found = {
        "machine": machine,
        "workloads": {
            table.workload: {
                "seconds": {name: figure.seconds for name, figure in table.figures.items()},
                "to_monolith": {name: table.ratio(name, BASE) for name in table.figures},
                "absent": table.absent,
            }
            for table in tables
        },
    }
    data.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return [page, data, *_pictures(folder / name, title, tables)]


def _pictures(stem: Path, title: str, tables: Sequence[Table]) -> list[Path]:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return []
    names = sorted({name for table in tables for name in table.figures if name != BASE})
    canvas = Canvas(figsize=(9, 0.45 * len(names) * len(tables) + 1.5), layout="constrained")
    axes = canvas.subplots()
    positions: list[float] = []
    labels: list[str] = []
    for number, table in enumerate(tables):
        for offset, name in enumerate(each for each in names if each in table.figures):
            y = -(number * (len(names) + 1) + offset)
            colour = "tab:blue" if name.startswith("transom") else "tab:gray"
            axes.barh(y, table.ratio(name, BASE), color=colour)
            positions.append(y)
            labels.append(f"{table.workload}: {name}")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(positions, labels, fontsize=7)
    axes.set_xlabel(f"time, relative to the {BASE}")
    axes.set_title(title)
    paths = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
    for path in paths:
        canvas.savefig(path, dpi=120)
    return paths
