"""`transom lock`: write down what a spec gets at every place, so that others get the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from transom.cli.options import device_option, dtype_option, examples, mode_option, use_option
from transom.errors import OutputError, SpecError

if TYPE_CHECKING:
    from transom.specs.lock import Lock

__all__ = ["command"]


@click.command(
    "lock",
    epilog=examples(
        "transom lock tiny-llama",
        "transom lock my-model.yaml --out my-model.lock.json --use core_attention=dot_product",
        "transom plan tiny-llama --locked tiny-llama.lock.json",
    ),
)
@click.argument("spec")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to; NAME.lock.json unless given.")
@click.option("--force", is_flag=True, help="Overwrite even what is not a lock of this model.")
@use_option
@device_option
@dtype_option
@mode_option
def command(
    spec: str,
    out: Path | None,
    force: bool,
    use: dict[str, str],
    device: str,
    dtype: str | None,
    mode: Literal["train", "infer"],
) -> None:
    """Write down what a spec gets at every place, for others to get the same.

    SPEC is a YAML, TOML or JSON file, the name of a packaged recipe, or the folder of a model. A lock of the
    same model is replaced, and what changed is told.
    """
    from transom.checkpoint.atomic import write_file
    from transom.pretrained.spec import read_spec
    from transom.specs.lock import Lock
    from transom.specs.plan import plan

    made = plan(read_spec(spec), device=device, dtype=dtype, mode=mode, use=use)
    lock = Lock.from_plan(made)
    path = out or Path(f"{lock.name.replace('/', '-')}.lock.json")
    before = None if force or not path.exists() else _own(path, lock)
    write_file(path, lock.to_text().encode())
    for line in [] if before is None else before.differences(made, "exact"):
        click.echo(line)
    of = ", ".join(lock.distributions)
    click.echo(f"Locked {len(lock.nodes)} places of {lock.name} in {path}, filled from {of}.")


def _own(path: Path, lock: Lock) -> Lock:
    """Read the lock that would be overwritten, which must be one of the same model."""
    from transom.specs.lock import read_lock

    try:
        before = read_lock(path)
    except SpecError as error:
        what = f"{path} exists and is no lock, or cannot be read: {error.what}"
        raise OutputError(what, hint="another --out, or --force", path=path) from error
    if before.name != lock.name:
        what = f"{path} is the lock of another model, {before.name}, not of {lock.name}."
        raise OutputError(what, hint="another --out, or --force", path=path)
    return before
