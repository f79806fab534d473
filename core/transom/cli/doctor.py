"""`transom doctor`: what is wrong with this installation; plugins are imported in other processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from transom.cli.findings import EXIT_WRONG, print_findings, summary
from transom.cli.options import examples, json_option
from transom.cli.table import print_table
from transom.registry.registry import default_registry

if TYPE_CHECKING:
    from transom.diagnosis.doctor import Diagnosis, Examined

__all__ = ["command"]


@click.command("doctor", epilog=examples("transom doctor", "transom doctor --json", "transom doctor --timeout 10"))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the import of one plugin may take.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, timeout: float, as_json: bool) -> None:
    """Say what is wrong with this installation; exit with 1 when something is.

    Every plugin that the policy allows is imported, in a process of its own: one that hangs, exits or crashes is
    reported. What is merely worth knowing, such as a plugin that has no device here, is a note.
    """
    from transom.diagnosis.doctor import diagnose

    found = diagnose(default_registry(), limit=timeout)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    if not found.is_healthy:
        ctx.exit(EXIT_WRONG)


def _print(found: Diagnosis) -> None:
    _print_environment(found.environment)
    click.echo()
    rows = [_row(each) for each in found.distributions]
    print_table(["distribution", "version", "registers", "serves here", "imported", "location"], rows)
    print_findings(found.findings)
    click.secho(f"\n{summary(found.findings)}", fg="green" if found.is_healthy else "red")


def _print_environment(environment: dict[str, Any]) -> None:
    policy, config = environment["policy"], environment["config"]
    devices = ", ".join(_device(device) for device in environment["devices"]) or "unknown"
    click.echo(f"transom {environment['transom']}, torch {environment['torch']}, Python {environment['python']}")
    click.echo(f"platform  {environment['platform']}, {environment['cpus']} CPUs")
    click.echo(f"devices   {devices}")
    click.echo(f"config    {config['file']}{'' if config['is_there'] else ' (none)'}")
    for name in ("allow", "deny"):
        if policy[name]:
            click.echo(f"{name:<9} {', '.join(policy[name])} (from {policy[f'{name}_from']})")
    if policy["strict"]:
        click.echo("strict    an implementation that fails to import is an error, even in a chain")


def _device(device: dict[str, Any]) -> str:
    if "capability" in device:
        return f"{device['type']} ({device['name']}, {'.'.join(map(str, device['capability']))})"
    return str(device["type"])


def _row(each: Examined) -> list[str]:
    """Say of one distribution how many entries it has, how many of its promises hold, and how long its import took."""
    seconds = sum(outcome.seconds for outcome in each.outcomes)
    failed = sum(outcome.status != "ok" for outcome in each.outcomes)
    imported = "forbidden" if each.forbidden else f"{failed} failed" if failed else f"in {seconds:.2f} s"
    holds = sum(not promise.missing for promise in each.promises)
    entries = len(each.outcomes) or len(each.promises)
    return [each.name, each.version, str(entries), f"{holds} of {len(each.promises)}", imported, each.location]
