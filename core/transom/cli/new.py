"""`transom new`: write a plugin that works, for its author to go on from."""

from __future__ import annotations

from pathlib import Path

import click

from transom.cli.options import examples

__all__ = ["command"]


@click.command(
    "new",
    epilog=examples(
        "transom new acme-attention --slot core_attention",
        "transom new acme-linear --slot linear --author 'Acme' --out plugins/acme-linear",
    ),
)
@click.argument("name")
@click.option("--slot", required=True, help="What it fills; `transom list` names the slots. `linear` is both linears.")
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Where to write it; ./NAME unless given."
)
@click.option("--author", help="For metadata and licence.")
def command(name: str, slot: str, out: Path | None, author: str | None) -> None:
    """Write a plugin that works, for its author to go on from.

    It is a package named NAME, with an implementation, its card and its tests, and correct as it stands: replace the
    mathematics, and let the tests say whether it still is.
    """
    from transom.authoring.new_plugin import new_plugin

    made = new_plugin(name, slot, folder=out, author=author)
    click.echo(f"Wrote {made.distribution}, which fills {' and '.join(made.slots)} as {made.name}:")
    for path in sorted(made.files):
        click.echo(f"  {made.folder / path}")
    click.echo("\nNow:")
    # --group needs pip 25.1, and an environment's own may be years older.
    upgrade = "python -m pip install --upgrade pip"
    for line in (f"cd {made.folder}", upgrade, "pip install -e . --group test", "pytest"):
        click.echo(f"  {line}")
