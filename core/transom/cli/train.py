"""`transom train`: from a spec to a trained checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from transom.cli.options import device_option, examples, json_option, lock_mode_option, locked_option, use_option
from transom.errors import TransomError

if TYPE_CHECKING:
    from transom.training.run import RunResult

__all__ = ["command"]


def _hooks_callback(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str | dict[str, Any], ...]:
    from transom.specs.read import read_text

    return tuple(read_text(entry, "yaml", file="--hook")[0] if entry.startswith("{") else entry for entry in value)


@click.command(
    "train",
    epilog=examples(
        "transom train tiny-llama --out runs/first",
        "transom train my-model.yaml --data texts/ --steps 2000 --use core_attention=dot_product",
        "transom train tiny-llama --out runs/first --resume",
        "transom train runs/first --data texts/ --hook lora --out runs/adapted",
        "torchrun --nproc-per-node 2 --no-python transom train tiny-llama --dp 2 --out runs/two",
        "torchrun --nproc-per-node 4 --no-python transom train tiny-llama --pp 2 --dp 2 --out runs/four",
    ),
)
@click.argument("spec")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run, new or empty; else runs/NAME."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in the folder from its last checkpoint, under the run's own spec; --steps and --data win.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the optimizer, in place of the spec's.")
@click.option(
    "--data",
    metavar="PATH",
    multiple=True,
    help="A text file, a folder of *.txt and *.md, or token ids (.npy, .bin), in place of the spec's. Repeatable.",
)
@click.option(
    "--init-from",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin with the weights in a folder: of Hugging Face's form, of a run, or a checkpoint.",
)
@click.option(
    "--hook",
    "hooks",
    metavar="NAME",
    multiple=True,
    callback=_hooks_callback,
    help="A hook after the spec's: its name, or '{hook: NAME, options: {...}}'. Repeatable.",
)
@click.option("--tp", type=click.IntRange(min=1), help="Ranks that share each layer's weights; torchrun starts them.")
@click.option("--pp", type=click.IntRange(min=1), help="Ranks that share the layers, in a pipeline.")
@click.option("--dp", type=click.IntRange(min=1), help="Ranks that see other data; as many as are left unless given.")
@click.option("--cp", type=click.IntRange(min=1), help="Ranks that share each sequence, of whose tokens each has some.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of weights, data order and dropout.")
@use_option
@device_option
@locked_option
@lock_mode_option
@json_option
def command(
    spec: str,
    out: Path | None,
    resume: bool,
    steps: int | None,
    data: tuple[str, ...],
    init_from: Path | None,
    hooks: tuple[str | dict[str, Any], ...],
    tp: int | None,
    pp: int | None,
    dp: int | None,
    cp: int | None,
    seed: int | None,
    use: dict[str, str],
    device: str,
    locked: str | None,
    lock_mode: Literal["exact", "compatible", "free"],
    as_json: bool,
) -> None:
    """Train the model that a spec describes.

    SPEC is a YAML, TOML or JSON file, or the name of a packaged recipe; or a folder with a model, of Hugging Face's
    form or a run's, to begin with its weights. The spec's train section says on what and how to train; without one, on
    English text that comes with Python. The folder receives metrics.jsonl, the loss curve and
    checkpoints; nothing in it is ever overwritten. Ctrl-C stops after the current step and saves it.

    A resumed run keeps its own spec, which lies in its folder: SPEC must agree in all that is computed, and where its
    steps or data differ, the run's hold, unless --steps or --data are given again. The data must be the same tokens.
    """
    from transom.distributed.launch import is_first
    from transom.training.progress import reporter_for
    from transom.training.run import train

    try:
        result = train(
            spec,
            out=out,
            resume=resume,
            steps=steps,
            data=data or None,
            seed=seed,
            init_from=init_from,
            hooks=hooks,
            use=use,
            device=device,
            lock=locked,
            lock_mode=lock_mode,
            tp=tp,
            pp=pp,
            dp=dp,
            cp=cp,
            reporter=reporter_for(sys.stderr),
        )
    except KeyboardInterrupt:
        if is_first():
            _say_how_to_resume(spec, out)
        raise
    if is_first():
        click.echo(_as_json(result) if as_json else _summary(result, device))


def _say_how_to_resume(spec: str, out: Path | None) -> None:
    from transom.pretrained.spec import read_spec
    from transom.training.run_folder import RunFolder

    folder = RunFolder(out or Path("runs") / read_spec(spec).name)
    if folder.spec.exists():
        again = ["transom", "train", spec, "--out", str(folder.path), "--resume"]
        click.echo(f"\nGo on with:  {shlex.join(again)}", err=True)


def _as_json(result: RunResult) -> str:
    return json.dumps(dataclasses.asdict(result), default=str, indent=2)


def _can_generate(checkpoint: Path, device: str) -> bool:
    """Whether those who trained the model can serve its generation too, which asks for other masks."""
    from transom.pretrained.spec import read_spec
    from transom.specs.plan import plan

    try:
        plan(read_spec(checkpoint), device=device, mode="infer")
    except TransomError:
        return False
    return True


def _summary(result: RunResult, device: str) -> str:
    bigram = "" if result.bigram_loss is None else f"  (a bigram model: {result.bigram_loss:.4f})"
    rows = {
        "trained": f"{result.parameters:,} parameters, {result.steps:,} steps, {result.tokens:,} tokens, "
        f"{result.seconds:.0f} s",
        "training loss": "unknown: the metrics were deleted" if result.loss is None else f"{result.loss:.4f}",
        "validation loss": f"{result.validation_loss:.4f}{bigram}",
        "loss curve": "not drawn: matplotlib is not installed" if result.curve is None else str(result.curve),
        "checkpoint": str(result.checkpoint),
    }
    if _can_generate(result.checkpoint, device):
        rows["try it"] = f'transom generate {shlex.quote(str(result.folder))} --prompt "The "'
    return "\n".join(f"{name + ':':<17}{text}" for name, text in rows.items())
