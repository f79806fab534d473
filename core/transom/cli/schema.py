"""`transom schema`: the JSON Schema of specs and of cards, for editors; reads data, imports no plugin."""

from __future__ import annotations

import json
from typing import Literal

import click

from transom.cli.options import examples

__all__ = ["command"]


@click.command("schema", epilog=examples("transom schema spec", "transom schema card"))
@click.argument("what", type=click.Choice(["spec", "card"]), metavar="spec|card")
def command(what: Literal["spec", "card"]) -> None:
    """Print the JSON Schema of specs or of cards.

    An editor that knows it completes and checks what one writes; docs/how-to/complete-in-an-editor.md says how.
    """
    if what == "spec":
        from transom.specs.schema import spec_schema as schema
    else:
        from transom.registry.card import card_schema as schema
    click.echo(json.dumps(schema(), indent=2))
