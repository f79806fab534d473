"""`transom plan`: who fills every place of a spec, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from transom.specs.plan import Plan
    from transom.specs.totals import Measured

__all__ = ["command"]


@click.command(
    "plan",
    epilog=examples(
        "transom plan tiny-llama",
        "transom plan my-model.yaml --use core_attention=dot_product --use layers.0.mlp=mlp",
        "transom plan tiny-llama --mode infer --dtype bfloat16 --json",
        "transom plan llama-405b-shape --totals --world tp=8,pp=16,dp=32",
        "transom plan tiny-llama --world 'pp=2,vpp=2,layout=Et|t|t|t,L'",
        "transom plan tiny-llama --html plan.html",
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
@click.option("--totals", "with_columns", is_flag=True, help="Show what each place costs.")
@click.option(
    "--world",
    metavar="SIZES",
    help="Show what each of many ranks has, and says in a step: tp=8,pp=16,dp=32 (and sp=1, cp=2, batch=64, "
    "microbatches=16, zero=1, vpp=2, layout=Et|tt|t,L).",
)
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Draw the plan on a page of its own.")
@json_option
def command(
    spec: str,
    use: dict[str, str],
    device: str,
    dtype: str | None,
    mode: Literal["train", "infer"],
    locked: str | None,
    lock_mode: Literal["exact", "compatible", "free"],
    with_columns: bool,
    world: str | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show which implementation a spec gets at every place, and why.

    SPEC is a YAML, TOML or JSON file, the name of a packaged recipe, or the folder of a model. Nothing is
    allocated; only what was chosen is imported.
    """
    from transom.checkpoint.atomic import write_file
    from transom.pretrained.spec import read_spec
    from transom.specs.page import render_page
    from transom.specs.plan import plan
    from transom.specs.render import render_plan

    made = plan(read_spec(spec), device=device, dtype=dtype, mode=mode, use=use, lock=locked, lock_mode=lock_mode)
    measured = _measured(made)
    ranks = None if world is None else _Ranks(made, world, measured)
    if html is not None:
        write_file(html, render_page(made, measured=measured).encode())
        click.echo(f"Drew {made.spec.name} on {html}.", err=as_json)
    if as_json:
        click.echo(json.dumps(made.to_dict(measured) | ({} if ranks is None else ranks.to_dict()), indent=2))
        return
    if html is None:
        click.echo(render_plan(made, measured=measured, with_columns=with_columns))
    if ranks is not None:
        click.echo(f"\n{ranks}")


class _Ranks:
    """What the ranks of a world have of a plan."""

    def __init__(self, made: Plan, text: str, measured: Measured) -> None:
        from transom.specs.activations import activations
        from transom.specs.communication import communication
        from transom.specs.render_world import Ranks
        from transom.specs.shares import split
        from transom.specs.stage_nodes import encoder_layers_of
        from transom.specs.step import Step
        from transom.specs.world import how_cut, parse_world

        self.world = world = parse_world(text, made.config)
        self.cut, self.plan = how_cut(made.config, world, encoder_layers_of(made.root)), made
        stages = split(made, world, measured)
        self.step = Step.of(made, world) if made.context.mode == "train" and world.zero == 3 else None
        if self.step is None:
            self.ranks = Ranks(stages)
        else:
            kept, said = activations(made, world, self.step), communication(made, world, self.step)
            self.ranks = Ranks(stages, kept, said)

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data, with the shapes of every parameter."""
        from transom.specs.stage_nodes import rank_shapes

        step = {} if self.step is None else {"step": asdict(self.step)}
        stages = self.ranks.to_dict()
        for stage, shapes in zip(stages, rank_shapes(self.plan, self.world), strict=True):
            stage["shapes"] = shapes
        return {"world": asdict(self.world), "cut": self.cut, **step, "stages": stages}

    def __str__(self) -> str:
        from transom.specs.render_world import render_world

        return render_world(self.world, self.ranks, self.cut, self.step)


def _measured(made: Plan) -> Measured:
    """Measure places whose requests do not tell what they cost; only these need torch."""
    from transom.specs.totals import told

    if all(told(node) for node in made.nodes()):
        return {}
    from transom.costs import measure

    return measure(made)
