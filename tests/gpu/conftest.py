"""The table at the end: what ran on this machine, with which versions, and what did not, with the reason."""

from __future__ import annotations

import platform
from collections import defaultdict

import pytest
import torch

from .choices import DEVICE

COLUMNS = ("conforms", "parity", "fullgraph", "training", "benchmark")


@pytest.fixture
def tell(record_property):
    """Give a function that writes into the table: the row, its versions, the column and what to say there."""

    def write(row: str, versions: str, column: str, said: str) -> None:
        record_property("gpu", (row, versions, column, said))

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if any of these tests ran."""
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    versions: dict[str, str] = {}
    reasons: dict[str, list[str]] = defaultdict(list)
    for status in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(status, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == "gpu" and (report.when == "call" or status == "skipped"):
                    row, versions[row], column, said = value
                    rows[row][column].append(said if status == "passed" else status)
                    if status == "skipped":
                        reasons[row].append(report.longrepr[2].removeprefix(f"Skipped: {row}: "))
    if not rows or not (torch.cuda.is_available() or DEVICE != "cuda"):
        return
    terminalreporter.section("what ran")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    terminalreporter.write_line(f"{device}, torch {torch.__version__}, Python {platform.python_version()}")
    table = [("", "versions", *COLUMNS)]
    table += [(row, versions[row], *(_cell(rows[row][column]) for column in COLUMNS)) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        terminalreporter.write_line("  ".join(cells).rstrip())
    for row, said in reasons.items():
        for reason in dict.fromkeys(said):
            terminalreporter.write_line(f"not {row}: {reason}")


def _cell(said: list[str]) -> str:
    """Say one result as it is, and many as counts."""
    counts = {each: said.count(each) for each in dict.fromkeys(said)}
    return ", ".join(each if count == 1 else f"{count} {each}" for each, count in counts.items())
