"""`transom convert`: checkpoints from one form into another."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from transom.cli.options import examples, json_option

if TYPE_CHECKING:
    from transom.pretrained.convert import Form

__all__ = ["command", "parse_size"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Turn a size such as ``5GB`` into bytes.

    Args:
        text: a number and, optionally, K, M, G or T, and B.

    Returns:
        the number of bytes.

    Raises:
        click.BadParameter: it is none.

    Example:
        >>> parse_size("1.5GB"), parse_size("200 M"), parse_size("4096")
        (1500000000, 200000000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = 0 if match is None else round(float(match[1]) * _UNITS[match[2].upper()])
    if size < 1:
        raise click.BadParameter(f"{text!r} is no size; 5GB and 200MB are.")
    return size


@click.command(
    "convert",
    epilog=examples(
        "transom convert Llama-3.2-1B runs/llama",
        "transom convert runs/llama Llama-3.2-1B-mine",
        "transom convert runs/llama Llama-3.2-1B-mine --to hf --dtype bfloat16 --max-shard-size 2GB",
        "transom convert state.pt runs/llama --from torchtune --spec my-model.yaml",
    ),
)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "form",
    type=click.Choice(["hf", "transom", "torchtune", "megatron"]),
    help="The form of SRC, where its files do not tell: state dicts of torchtune and Megatron-core need --spec.",
)
@click.option("--spec", help="The model of a state dict: a spec's file, a recipe, or the folder of such a model.")
@click.option("--to", type=click.Choice(["hf", "transom"]), help="The form to write; else the one that SRC has not.")
@click.option("--dtype", default=None, help="Dtype of the weights by torch's name; as they are unless given.")
@click.option("--max-sequence-length", type=click.IntRange(min=1), help="Longest text, in place of the config.json's.")
@click.option("--family", metavar="NAME", help="model_type of the config.json; else the first that computes the same.")
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    callback=lambda ctx, param, value: parse_size(value),
    help="Most bytes in a file, in Hugging Face's form.",
)
@json_option
def command(
    source: Path,
    target: Path,
    form: Form | None,
    spec: str | None,
    to: Literal["hf", "transom"] | None,
    dtype: str | None,
    max_sequence_length: int | None,
    family: str | None,
    max_shard_size: int,
    as_json: bool,
) -> None:
    """Write a checkpoint in another form: Hugging Face's, or Transom's own.

    SRC is a folder as save_pretrained of transformers writes it, or a run or one of its checkpoints; or, with --from
    and --spec, a state dict of torchtune or Megatron-core. DST must not exist; it appears complete, or not at all.
    Weights pass one after another, so that memory stays small. A tokenizer's files go along.
    """
    from transom.pretrained.convert import convert

    made = convert(
        source,
        target,
        form=form,
        spec=spec,
        to=to,
        dtype=dtype,
        max_sequence_length=max_sequence_length,
        family=family,
        shard_bytes=max_shard_size,
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(made), default=str, indent=2))
    else:
        kind = "a checkpoint" if made.form == "transom" else f"a folder for transformers ({made.form})"
        click.echo(f"Wrote {kind} in {made.folder}: {made.tensors} tensors, {made.bytes:,} bytes.")
        if made.tokenizer is None:
            click.echo("It has no tokenizer: transom generate needs one to read prompts.")
