"""`transom bench`: implementations of a slot side by side, on this machine and one's own shapes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from transom.cli.options import device_option, dtype_option, examples, json_option, mode_option, use_option
from transom.cli.table import print_table

if TYPE_CHECKING:
    from transom.comparison.compare import Comparison, Outcome

__all__ = ["command"]


def _shapes(ctx: click.Context, param: click.Parameter, value: str | None) -> list[tuple[int, int]] | None:
    if value is None:
        return None
    found = [re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", each) for each in value.split(",")]
    if None in found:
        raise click.BadParameter(f"{value!r} is not ROWSxTOKENS,ROWSxTOKENS ...")
    return [(int(each[1]), int(each[2])) for each in found if each]


def _names(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(each.strip() for given in value for each in given.split(",") if each.strip()))


@click.command(
    "bench",
    epilog=examples(
        "transom bench tiny-llama",
        "transom bench tiny-llama --slot norm --shapes 1x1,8x256 --mode infer",
        "transom bench my-model.yaml --impl dot_product,torch_dot_product --plot attention.png",
        "transom bench my-model.yaml --slot linear --dtype bfloat16 --compile --write-auto",
        "transom bench Llama-3.2-1B --mode infer",
    ),
)
@click.argument("spec")
@click.option("--slot", default="core_attention", show_default=True, help="Whose implementations are compared.")
@click.option(
    "--impl",
    "names",
    metavar="A,B",
    multiple=True,
    callback=_names,
    help="Which, the reference first; all installed unless given. Repeatable.",
)
@click.option(
    "--shapes",
    callback=_shapes,
    help="Batches: ROWSxTOKENS, by commas.  [default: 1x128,8x128, or as many tokens as the model takes]",
)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="How often each is timed.")
@use_option
@device_option
@dtype_option
@mode_option
@click.option("--compile", "compiles", is_flag=True, help="Compile each with torch.compile, anew for each shape.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the times: .png, .svg or .pdf.")
@click.option("--write-auto", is_flag=True, help="Make the order what `auto` stands for, in the user's config.")
@json_option
def command(
    spec: str,
    slot: str,
    names: list[str],
    shapes: list[tuple[int, int]] | None,
    rounds: int,
    use: dict[str, str],
    device: str,
    dtype: str | None,
    mode: Literal["train", "infer"],
    compiles: bool,
    plot: Path | None,
    write_auto: bool,
    as_json: bool,
) -> None:
    """Compare implementations of a slot: outputs, gradients and speed.

    SPEC is a YAML, TOML or JSON file, the name of a packaged recipe, or the folder of a model. The first place of
    the slot is timed alone, with the inputs that reach it in the model; all implementations have the same weights and
    take turns. Whoever computes something else than the first is told, and gets no place in the order.
    """
    from transom.comparison.auto_order import auto_order_file
    from transom.comparison.compare import compare
    from transom.comparison.picture import check_picture, draw_comparison
    from transom.pretrained.spec import read_spec

    if plot is not None:
        check_picture(plot)
    if write_auto:
        auto_order_file()
    found = compare(
        read_spec(spec),
        slot,
        implementations=names,
        shapes=shapes,
        mode=mode,
        device=device,
        dtype=dtype,
        use=use,
        rounds=rounds,
        compiles=compiles,
    )
    if as_json:
        click.echo(json.dumps(_data(found), indent=2))
    else:
        _print(found)
    if plot is not None:
        draw_comparison(found, plot)
    if write_auto:
        _write(found, as_json)


def _print(found: Comparison) -> None:
    compiled = ", compiled" if found.compiled else ""
    click.echo(f"{found.slot} at {found.path or 'the model'}, {found.dtype} on {found.device}{compiled}")
    for (rows, tokens), outcomes in found.outcomes.items():
        click.echo(f"\n{rows} x {tokens} tokens")
        trains = found.mode == "train"
        head = [
            "implementation",
            "forward",
            "ratio",
            *(["with backward", "ratio"] if trains else []),
            "outputs differ by",
        ]
        print_table(head + (["gradients"] if trains else []), [_row(each, outcomes[0]) for each in outcomes])
    for title, reasons in (("Cannot serve:", found.refused), ("Computes something else:", found.mistakes())):
        lines = [f"  {name}: {why}" for name, why in reasons.items()]
        click.echo("\n".join(["", title, *lines] if lines else []), nl=bool(lines))
    click.echo(f"\nFastest first: {' | '.join(found.order())}")


def _row(outcome: Outcome, reference: Outcome) -> list[str]:
    cells = [outcome.name, _time(outcome.forward.median), f"{outcome.forward.ratio(reference.forward):.2f}"]
    if outcome.both is not None and reference.both is not None:
        cells += [_time(outcome.both.median), f"{outcome.both.ratio(reference.both):.2f}"]
    errors = [outcome.output_error, *([outcome.gradient_error] if outcome.both is not None else [])]
    return cells + ["-" if each is None else f"{each:.1e}" for each in errors]


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} µs"


def _data(found: Comparison) -> dict[str, Any]:
    shapes = [
        {
            "rows": rows,
            "tokens": tokens,
            "outcomes": [
                {
                    "implementation": each.name,
                    "forward_seconds": each.forward.seconds,
                    "forward_and_backward_seconds": each.both and each.both.seconds,
                    "output_error": _finite(each.output_error),
                    "gradient_error": _finite(each.gradient_error),
                    "mistake": each.mistake or None,
                }
                for each in outcomes
            ],
        }
        for (rows, tokens), outcomes in found.outcomes.items()
    ]
    facts = {name: getattr(found, name) for name in ("slot", "path", "mode", "device", "dtype", "compiled")}
    told = {"refused": dict(found.refused), "mistakes": found.mistakes(), "order": list(found.order())}
    return facts | {"shapes": shapes} | told


def _finite(error: float | None) -> float | None:
    """Give what JSON has a number for; an infinite difference is told in words beside it."""
    return error if error is None or math.isfinite(error) else None


def _write(found: Comparison, as_json: bool) -> None:
    from transom.comparison.auto_order import write_auto_order

    order = " | ".join(found.order())
    written = write_auto_order(found.slot, found.order())
    if written.before == found.order():
        text = f"auto stands for {order} in {found.slot} already: {written.path}"
    else:
        instead = f" instead of {' | '.join(written.before)}" if written.before else ""
        text = f"auto now stands for {order} in {found.slot}{instead}: {written.path}"
    click.echo(text, err=as_json)
    for slot, names in written.shadowed.items():
        click.echo(f"but not in {slot}, which has an order of its own there: {' | '.join(names)}", err=as_json)
