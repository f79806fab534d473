"""What `transom doctor` and `transom check` found, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from transom.diagnosis.finding import Finding

__all__ = ["EXIT_WRONG", "print_findings", "summary"]

EXIT_WRONG = 1


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what is wrong, then what is merely worth knowing; what holds of several places is said once."""
    for level, heading, colour in (("wrong", "Wrong:", "red"), ("note", "Notes:", "yellow")):
        chosen = [finding for finding in findings if finding.level == level]
        if chosen:
            click.secho(f"\n{heading}", fg=colour)
        alike: dict[Finding, list[str]] = {}
        for finding in chosen:
            alike.setdefault(replace(finding, where=""), []).append(finding.where)
        for finding, places in alike.items():
            _print(finding, [place for place in places if place])


def _print(finding: Finding, places: Sequence[str]) -> None:
    where = f" ({', '.join(places)})" if places else ""
    click.echo(f"  {finding.distribution or 'transom'}: {finding.what}{where}")
    if finding.hint:
        click.echo(f"    Try: {finding.hint}")
    if finding.traceback:
        click.echo(textwrap.indent(finding.traceback.rstrip(), "      "))


def summary(findings: Sequence[Finding]) -> str:
    """Say in one line how many things are wrong.

    Example:
        >>> summary([])
        'Nothing is wrong.'
    """
    wrong, notes = (sum(finding.level == level for finding in findings) for level in ("wrong", "note"))
    said = {0: "Nothing is wrong", 1: "1 thing is wrong"}.get(wrong, f"{wrong} things are wrong")
    more = {0: "", 1: "; 1 note"}.get(notes, f"; {notes} notes")
    return f"{said}{more}."
