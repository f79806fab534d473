"""`transom check`: whether a distribution or an implementation is what its card and its slot's contract say."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transom.checkpoint.atomic import write_file
from transom.cli.findings import EXIT_WRONG, print_findings, summary
from transom.cli.options import examples, json_option
from transom.cli.table import print_table
from transom.registry.find import find
from transom.registry.names import normalise
from transom.registry.registry import default_registry
from transom.testing.report import AREAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transom.diagnosis.finding import Finding
    from transom.registry.implementation import Implementation
    from transom.registry.registry import Registry
    from transom.testing import Outcome, Report

__all__ = ["command"]


@click.command(
    "check",
    epilog=examples(
        "transom check transom-torch-dot-product",
        "transom check dot_product",
        "transom check transom/torch_norm --conformance",
        "transom check linear/torch_linear --conformance --report report.json",
    ),
)
@click.argument("ref", metavar="DIST | [SLOT/]REF")
@click.option("--conformance", is_flag=True, help="Run it too, against the reference and its slot's contract.")
@click.option("--only", metavar="TEXT", help="Only cases whose id contains this.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the import of a distribution's entry may take.",
)
@click.option("--all", "show_all", is_flag=True, help="List every case, not only those that fail.")
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write JSON, and a Markdown table for a README beside it: FILE with .md for its suffix.",
)
@click.option(
    "--badge",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the Markdown table here; it needs no --report.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    ref: str,
    conformance: bool,
    only: str | None,
    timeout: float,
    show_all: bool,
    report: Path | None,
    badge: Path | None,
    as_json: bool,
) -> None:
    """Check a distribution or an implementation; exit with 1 when something is wrong.

    DIST is an installed distribution: its metadata, entry points, card and signatures are compared, and it is
    imported in another process to see what that does. REF is an implementation's name, or distribution/name; a slot
    before it says which is meant where several slots know the name: its card, its entry point, its signature, its
    refusals and its import are checked. With --conformance, implementations are run too.
    """
    registry = default_registry()
    findings, chosen = _chosen(registry, ref, timeout)
    reports = _run(chosen, conformance, only, show_all, as_json) if conformance or findings is None else []
    data: Any = [each.to_dict() for each in reports]
    if findings is not None:
        data = {"distribution": ref, "findings": [asdict(finding) for finding in findings], "reports": data}
    if as_json:
        click.echo(json.dumps(data, indent=2))
    elif findings is not None:
        print_findings(findings)
        is_wrong = any(finding.is_wrong for finding in findings) or not all(each.conforms for each in reports)
        click.secho(f"\n{ref}: {_verdict(findings, reports)}", fg="red" if is_wrong else "green")
    _write(reports, data, report, badge)
    if not all(each.conforms for each in reports) or any(finding.is_wrong for finding in findings or ()):
        ctx.exit(EXIT_WRONG)


def _verdict(findings: Sequence[Finding], reports: Sequence[Report]) -> str:
    """Say in one line what came out of a distribution: of what it declares, and of the cases that were run."""
    said = summary(findings)
    if all(each.conforms for each in reports):
        return said
    failed = sum(len(each.failed) for each in reports)
    cases = {0: "no case passed", 1: "1 case failed"}.get(failed, f"{failed} cases failed")
    return f"{said.replace('Nothing is wrong', 'Its declaration is right').removesuffix('.')}; {cases}."


def _write(reports: list[Report], data: Any, report: Path | None, badge: Path | None) -> None:
    """Write the files that were asked for; what was not run has no table."""
    if report is not None:
        write_file(report.with_suffix(".json") if report.suffix == ".md" else report, _json(data))
        badge = report.with_suffix(".md") if badge is None else badge
    if badge is not None and reports:
        write_file(badge, "\n".join(each.to_markdown() for each in reports).encode())


def _json(data: Any) -> bytes:
    return f"{json.dumps(data, indent=2)}\n".encode()


def _chosen(registry: Registry, ref: str, timeout: float) -> tuple[Sequence[Finding] | None, Sequence[Implementation]]:
    """Return what is wrong with a distribution, `None` where an implementation is meant, and the implementations."""
    own = [c for c in registry.implementations() if c.builder is None and normalise(c.distribution) == normalise(ref)]
    if normalise(ref) not in map(normalise, registry.index.distributions):
        return None, find(registry, ref, asked_by="transom check")
    from transom.diagnosis.check import check_distribution

    return check_distribution(ref, registry, limit=timeout), own


def _run(
    chosen: Sequence[Implementation], conformance: bool, only: str | None, show_all: bool, as_json: bool
) -> list[Report]:
    """Run the cases of implementations."""
    from transom.testing import cases_for, declaration_cases, run_cases

    generate = cases_for if conformance else declaration_cases
    reports = []
    for implementation in chosen:
        cases = [case for case in generate(implementation) if only is None or only in case.id]
        if not cases:
            raise click.BadParameter(f"no case of {implementation.slot} {implementation.ref} has {only!r} in its id.")
        made = run_cases(implementation, cases, on_outcome=None if as_json else _show_progress)
        reports.append(made)
        if not as_json:
            click.echo(err=True)
            _print(made, show_all)
    return reports


def _show_progress(outcome: Outcome) -> None:
    """Write one sign a case to stderr."""
    click.echo({"passed": ".", "failed": "F", "skipped": "s"}[outcome.status], nl=False, err=True)


def _print(report: Report, show_all: bool) -> None:
    """Print what came out of one implementation: its areas, then the cases that a reader should look at."""
    chosen = report.implementation
    click.secho(f"{chosen.slot} {chosen.label}", bold=True)
    rows = []
    for area, count in report.by_area().items():
        seconds = sum(outcome.seconds for outcome in report.outcomes if outcome.case.area == area)
        numbers = [str(count[status]) for status in ("passed", "failed", "skipped")]
        rows.append([area, *numbers, f"{seconds:.1f} s", AREAS.get(area, "")])
    print_table(["area", "passed", "failed", "skipped", "time", "what it shows"], rows, emphasised="area")
    if show_all:
        click.echo()
        listed = [[each.case.id, each.status, each.case.shows] for each in report.outcomes]
        print_table(["case", "result", "what it shows"], listed)
    for group in report.alike("failed"):
        _print_failed(group)
    for group in report.alike("skipped"):
        reason, ids = " ".join(group[0].detail.split()), ", ".join(outcome.case.id for outcome in group)
        click.echo(click.style(f"\nskipped {ids}", fg="yellow") + f": {reason}")
    passed = sum(outcome.status == "passed" for outcome in report.outcomes)
    verdict = (
        f"{passed} of {len(report.outcomes)} cases passed, {len(report.failed)} failed, {len(report.skipped)} skipped."
    )
    click.secho(f"\n{verdict}", fg="green" if report.conforms else "red")


def _print_failed(group: Sequence[Outcome]) -> None:
    """Print cases that failed alike: what the first should show and why it does not, then the others' ids."""
    first, *others = group
    click.secho(f"\nfailed {first.case.id}", fg="red")
    click.echo(textwrap.indent(f"should show: {first.case.shows}\n{first.detail}", "  "))
    if others:
        cases = "1 other case" if len(others) == 1 else f"{len(others)} other cases"
        click.echo(f"  {cases} failed alike: {', '.join(outcome.case.id for outcome in others)}")
