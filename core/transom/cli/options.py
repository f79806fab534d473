"""Options that several verbs share, so that each means the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from transom.specs.use import Assignments

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "device_option",
    "dtype_option",
    "examples",
    "json_option",
    "lock_mode_option",
    "locked_option",
    "mode_option",
    "parse_use",
    "use_option",
]


def examples(*lines: str) -> str:
    r"""Write the closing paragraph of a verb's help.

    Args:
        lines: command lines that work as they stand.

    Returns:
        a paragraph that click leaves unwrapped.

    Example:
        >>> examples("transom list", "transom list norm")
        '\x08\nExamples:\n  transom list\n  transom list norm'
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def parse_use(assignments: Sequence[str]) -> Assignments:
    """Turn what was given to ``--use`` into a mapping from slots (or paths) to names.

    Args:
        assignments: each ``SLOT=NAME``; the name may be a chain ``"a | b"``.

    Returns:
        the names by slot or path, in the order given; messages about them quote the option.

    Raises:
        click.BadParameter: an assignment lacks its ``=``, its slot or its name, or a slot is given twice.

    Example:
        >>> parse_use(["core_attention=torch_dot_product | dot_product", "linear=torch_linear"])
        {'core_attention': 'torch_dot_product | dot_product', 'linear': 'torch_linear'}
    """
    use = Assignments()
    for assignment in assignments:
        slot, _, name = (text.strip() for text in assignment.partition("="))
        if not slot or not name:
            raise click.BadParameter(f"{assignment!r} is not SLOT=NAME.")
        if slot in use:
            raise click.BadParameter(f"{slot!r} is given twice: {use[slot]!r} and {name!r}.")
        use[slot] = name
    return use


def _use_callback(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> Assignments:
    return parse_use(value)


use_option = click.option(
    "--use",
    metavar="SLOT=NAME",
    multiple=True,
    callback=_use_callback,
    help="Fill a slot (or one place, by its path) with an implementation, over what the spec says. Repeatable.",
)
"""``--use SLOT=NAME``, repeated; the verb receives ``use``, a dict."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""``--json``; the verb receives ``as_json``."""

device_option = click.option("--device", default="cpu", show_default=True, help="Device type: cpu, cuda ...")
"""``--device``; the verb receives ``device``."""

dtype_option = click.option("--dtype", default=None, help="Dtype by torch's name; the spec's unless given.")
"""``--dtype``; the verb receives ``dtype``, `None` unless given."""

mode_option = click.option(
    "--mode", type=click.Choice(["train", "infer"]), default="train", show_default=True, help="Train needs gradients."
)
"""``--mode``; the verb receives ``mode``."""

locked_option = click.option(
    "--locked",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Take the choices of this lock, as `transom lock` writes it; disagreements are told.",
)
"""``--locked``; the verb receives ``locked``, `None` unless given."""

lock_mode_option = click.option(
    "--lock-mode",
    type=click.Choice(["exact", "compatible", "free"]),
    default="compatible",
    show_default=True,
    help="How closely the plan must agree with the lock.",
)
"""``--lock-mode``; the verb receives ``lock_mode``."""
