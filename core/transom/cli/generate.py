"""`transom generate`: texts go on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transom.cli.options import device_option, dtype_option, examples, json_option, use_option
from transom.errors import ResolutionError

if TYPE_CHECKING:
    from torch import nn

    from transom.inference.settings import GenerationSettings
    from transom.text.tokenizer import Tokenizer

__all__ = ["command"]

_DEFAULT_LENGTH = 200
_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "greedy", "seed", "stop")


@click.command(
    "generate",
    epilog=examples(
        'transom generate runs/first --prompt "The "',
        'transom generate runs/first --prompt "The " --temperature 0.8 --top-p 0.95 --seed 1',
        'transom generate runs/first --prompt "The " --greedy --use core_attention=dot_product --json',
        'transom generate runs/first --prompt "The " --prompt "A " --stop "." --max-new-tokens 40',
        "transom generate runs/first --prompts-file prompts.txt --beams 4 --cache paged",
    ),
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help="A text to go on from. Repeatable.")
@click.option(
    "--prompts-file",
    type=click.File(encoding="utf-8"),
    help="A file with one text a line; - is the standard input.",
)
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
@click.option("--min-p", type=click.FloatRange(0, 1), help="Choose among tokens P times as probable as the first.")
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, what was there before becomes less likely.",
)
@click.option("--greedy", is_flag=True, help="Always take the most probable token.")
@click.option(
    "--stop", metavar="TEXT", multiple=True, help="End a text where this comes, and leave it out. Repeatable."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of the first text's choices; the others count up.")
@click.option("--beams", type=click.IntRange(min=1), help="Search for the most probable text with this many beams.")
@click.option("--start-id", type=int, help="First id of what an encoder-decoder writes; else the checkpoint's.")
@click.option("--cache", "kind", metavar="KIND", help="The key/value cache: a name that transom list kv_cache shows.")
@click.option("--compile", "compiles", is_flag=True, help="Compile the step of one token.")
@use_option
@device_option
@dtype_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    checkpoint: Path,
    prompts: tuple[str, ...],
    prompts_file: Any,
    use: dict[str, str],
    kind: str | None,
    device: str,
    dtype: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Continue texts with a trained checkpoint.

    CHECKPOINT is a checkpoint's folder, or the folder of a run, of which the newest is taken; or a folder that Hugging
    Face's save_pretrained wrote, whose ends of text end a text here too. One text appears as it is generated; several
    are generated together, and appear when all are done.
    """
    from transom.pretrained.tokenizer import special_ids, tokenizer_of

    texts = _texts(prompts, prompts_file)
    if choices["beams"] is not None:
        _refuse_beside(ctx, "beams", _OF_SAMPLING, "a beam search draws nothing")
    if choices["greedy"]:
        _refuse_beside(ctx, "greedy", _OF_DRAWING, "the most probable token is taken, and none drawn")
    tokenizer, special = tokenizer_of(checkpoint), special_ids(checkpoint)
    choices["eos_ids"] = special.eos
    choices["start_id"] = special.start if choices["start_id"] is None else choices["start_id"]
    starts = [tokenizer.encode(text).tolist() for text in texts]
    if prompts_file is not None:
        _refuse_empty_lines(prompts_file.name, starts)
    model = _loaded(checkpoint, _with_cache(use, kind), device, dtype)
    if len(texts) == 1 and prompts_file is None and choices["beams"] is None:
        _generate_one(model, tokenizer, texts[0], starts[0], choices, as_json)
        return
    results = _generate_all(model, tokenizer, texts, starts, choices)
    if as_json:
        click.echo(json.dumps(results if len(results) > 1 or prompts_file is not None else results[0], indent=2))
        return
    is_whole = choices["start_id"] is None
    for result in results:
        click.echo(f"{result['prompt'] if is_whole else ''}{result['text']}")


def _loaded(checkpoint: Path, use: dict[str, str], device: str, dtype: str | None) -> nn.Module:
    """Load a checkpoint; where who trained it cannot generate with it, say how another can."""
    from transom.pretrained.load import from_pretrained

    try:
        return from_pretrained(checkpoint, use=use, device=device, dtype=dtype)
    except ResolutionError as error:
        slot, able = error.data["slot"], error.data["able"]
        if not able or not (error.asked_by or "").startswith(f"use.{slot} in "):
            raise
        raise ResolutionError(
            error.what,
            asked_by=error.asked_by,
            available=error.available,
            failed=error.failed,
            hint=f"--use {slot}={able[0].removeprefix('transom/')}",
            **error.data,
        ) from error


def _texts(prompts: tuple[str, ...], file: Any) -> list[str]:
    if bool(prompts) == (file is not None):
        raise click.UsageError("Give the texts to go on from: either --prompt, once or more often, or --prompts-file.")
    if file is None:
        return list(prompts)
    try:
        lines: list[str] = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{file.name} is not UTF-8: {error}.", param_hint="--prompts-file") from error
    if not lines:
        raise click.BadParameter(f"{file.name} is empty.", param_hint="--prompts-file")
    return lines


def _refuse_empty_lines(file: str, starts: Sequence[Sequence[int]]) -> None:
    for number, start in enumerate(starts, 1):
        if not start:
            what = f"line {number} of {file} is empty; there must be a token to go on from."
            raise click.BadParameter(what, param_hint="--prompts-file")


def _refuse_beside(ctx: click.Context, chosen: str, others: Sequence[str], why: str) -> None:
    for name in others:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} and --{chosen} do not go together: {why}.")


def _with_cache(use: dict[str, str], kind: str | None) -> dict[str, str]:
    if kind is None:
        return use
    if "kv_cache" in use:
        raise click.UsageError("--cache and --use kv_cache=... say the same; give one of them.")
    use["kv_cache"] = kind
    return use


def _settings(choices: dict[str, Any], most: int | None) -> GenerationSettings:
    from transom.inference.settings import GenerationSettings

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "greedy", "start_id", "eos_ids")
    chosen = {name: choices[name] for name in names}
    return GenerationSettings(max_new_tokens=most, compile=choices["compiles"], **chosen)


def _generate_one(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, start: list[int], choices: dict[str, Any], as_json: bool
) -> None:
    """Write a text as it is generated."""
    from transom.inference.generate import stream
    from transom.inference.text import stream_text, until_stop

    most, seed = choices["max_new_tokens"], _seed(choices)
    tokens = stream(model, start, _settings(choices, most), seed=seed)
    made: list[int] = []
    limited = islice(tokens, _DEFAULT_LENGTH if most is None else None)
    before = start if choices["start_id"] is None else []
    said = (token for token in _collect(limited, made) if token not in choices["eos_ids"])
    pieces = until_stop(stream_text(tokenizer, before, said), choices["stop"])
    if as_json:
        text = "".join(pieces)
        click.echo(json.dumps({"prompt": prompt, "text": text, "tokens": made, "seed": seed}, indent=2))
    else:
        _write(prompt if choices["start_id"] is None else "", pieces)


def _generate_all(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], starts: list[list[int]], choices: dict[str, Any]
) -> list[dict[str, Any]]:
    """Generate all texts together."""
    from transom.inference.generate import generate
    from transom.inference.text import StopTexts, stream_text, until_stop

    most = _most(model, starts, choices)
    written = starts if choices["start_id"] is None else [[] for _ in starts]
    if choices["beams"] is not None:
        found: list[dict[str, Any]] = _search(model, starts, choices, most)
    else:
        is_done = StopTexts(tokenizer, written, choices["stop"]) if choices["stop"] else None
        rows = generate(model, starts, _settings(choices, most), seed=_seed(choices), is_done=is_done)
        found = [{"tokens": row.tokens, "seed": row.seed} for row in rows]
    results = []
    for prompt, before, result in zip(texts, written, found, strict=True):
        said = (token for token in result["tokens"] if token not in choices["eos_ids"])
        text = "".join(until_stop(stream_text(tokenizer, before, said), choices["stop"]))
        results.append({"prompt": prompt, "text": text} | result)
    return results


def _search(model: nn.Module, starts: list[list[int]], choices: dict[str, Any], most: int) -> list[dict[str, Any]]:
    from transom.inference.beam_search import beam_search
    from transom.inference.settings import BeamSettings

    settings = BeamSettings(
        num_beams=choices["beams"],
        max_new_tokens=most,
        repetition_penalty=choices["repetition_penalty"],
        eos_ids=choices["eos_ids"],
        start_id=choices["start_id"],
        compile=choices["compiles"],
    )
    return [{"tokens": beams[0].tokens, "score": beams[0].score} for beams in beam_search(model, starts, settings)]


def _most(model: nn.Module, starts: list[list[int]], choices: dict[str, Any]) -> int:
    """Give the number of new tokens: what was asked for, else what fits for all."""
    from transom.inference.decoding import longest_sequence

    asked: int | None = choices["max_new_tokens"]
    if asked is not None:
        return asked
    longest = longest_sequence(model)
    taken = 1 if choices["start_id"] is not None else max(map(len, starts))
    # A prompt that leaves no room is refused for that, not for what was never asked for.
    return _DEFAULT_LENGTH if longest is None else max(min(_DEFAULT_LENGTH, longest - taken), 1)


def _seed(choices: dict[str, Any]) -> int:
    seed: int | None = choices["seed"]
    return random.getrandbits(32) if seed is None else seed


def _collect(tokens: Iterable[int], made: list[int]) -> Iterator[int]:
    for token in tokens:
        made.append(token)
        yield token


def _write(prompt: str, pieces: Iterable[str]) -> None:
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
