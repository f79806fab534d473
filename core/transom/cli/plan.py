"""`transom plan`: who fills every place of a spec, and why."""

from __future__ import annotations

import json
from typing import Literal

import click

from transom.cli.options import (
    device_option,
    dtype_option,
    examples,
    json_option,
    lock_mode_option,
    locked_option,
    mode_option,
    use_option,
)

__all__ = ["command"]


@click.command(
    "plan",
    epilog=examples(
        "transom plan tiny-llama",
        "transom plan my-model.yaml --use core_attention=dot_product --use layers.0.mlp=mlp",
        "transom plan tiny-llama --mode infer --dtype bfloat16 --json",
        "transom plan tiny-llama --locked tiny-llama.lock.json --lock-mode exact",
    ),
)
@click.argument("spec")
@use_option
@device_option
@dtype_option
@mode_option
@locked_option
@lock_mode_option
@json_option
def command(
    spec: str,
    use: dict[str, str],
    device: str,
    dtype: str | None,
    mode: Literal["train", "infer"],
    locked: str | None,
    lock_mode: Literal["exact", "compatible", "free"],
    as_json: bool,
) -> None:
    """Show which implementation a spec gets at every place, and why.

    SPEC is a YAML, TOML or JSON file, or the name of a packaged recipe. Nothing is allocated; only what was chosen is
    imported.
    """
    from transom.specs.plan import plan

    made = plan(spec, device=device, dtype=dtype, mode=mode, use=use, lock=locked, lock_mode=lock_mode)
    click.echo(json.dumps(made.to_dict(), indent=2) if as_json else str(made))
