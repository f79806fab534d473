"""Tables for people: folded to a terminal's width, one line a row when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click

__all__ = ["print_table"]

_UNBOUNDED = 10_000  # columns


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, emphasised: str | None = None) -> None:
    """Print rows under headings; nothing is ever cut off.

    Args:
        headings: one a column.
        rows: as many cells as there are headings.
        emphasised: the heading of a column to print bold.

    Example:
        >>> print_table(["slot", "name"], [["norm", "torch_norm"], ["mlp", "mlp"]])
        slot  name
        norm  torch_norm
        mlp   mlp
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _UNBOUNDED, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", style="bold" if heading == emphasised else None)
    for row in rows:
        table.add_row(*row)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
