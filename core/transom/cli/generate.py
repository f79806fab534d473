"""`transom generate`: a text goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import click

from transom.cli.options import device_option, dtype_option, examples, json_option, use_option

__all__ = ["command"]

_DEFAULT_LENGTH = 200


@click.command(
    "generate",
    epilog=examples(
        'transom generate runs/first --prompt "The "',
        'transom generate runs/first --prompt "The " --temperature 0.8 --top-p 0.95 --seed 1',
        'transom generate runs/first --prompt "The " --greedy --use core_attention=dot_product --json',
    ),
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", required=True, help="The text to go on from.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    help=f"How many tokens to generate; else {_DEFAULT_LENGTH}, or what fits.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Below 1 the likely becomes likelier; 0 is greedy.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Choose among the K most probable tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Choose among the most probable tokens that together reach P.",
)
@click.option("--greedy", is_flag=True, help="Always take the most probable token.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of the choices; else another one each time.")
@use_option
@device_option
@dtype_option
@json_option
def command(
    checkpoint: Path,
    prompt: str,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    greedy: bool,
    seed: int | None,
    use: dict[str, str],
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Continue a text with a trained checkpoint.

    CHECKPOINT is a checkpoint's folder, or the folder of a run, of which the newest is taken. The text appears as it is
    generated.
    """
    from transom.inference.generate import generate
    from transom.inference.load import load_checkpoint_tokenizer, load_model
    from transom.inference.text import stream_text

    tokenizer = load_checkpoint_tokenizer(checkpoint)
    start = tokenizer.encode(prompt).tolist()
    model = load_model(checkpoint, use=use, device=device, dtype=dtype)
    seed = random.getrandbits(32) if seed is None else seed
    tokens = generate(
        model,
        start,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        seed=seed,
    )
    made: list[int] = []
    limited = islice(tokens, _DEFAULT_LENGTH if max_new_tokens is None else None)
    pieces = stream_text(tokenizer, start, _collect(limited, made))
    if as_json:
        text = "".join(pieces)
        click.echo(json.dumps({"prompt": prompt, "text": text, "tokens": made, "seed": seed}, indent=2))
    else:
        _write(prompt, pieces)


def _collect(tokens: Iterable[int], made: list[int]) -> Iterable[int]:
    for token in tokens:
        made.append(token)
        yield token


def _write(prompt: str, pieces: Iterable[str]) -> None:
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
