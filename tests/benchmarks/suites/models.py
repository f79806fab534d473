"""Whole models: forward, prefill, training step and decoding of Llamas; encoding and decoding of T5s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.contenders.contender import BASE, TOLERANCES, Contender
from benchmarks.contenders.everybody import encoder_decoders, llamas
from benchmarks.measure import Step
from benchmarks.settings import Settings, dtype_of
from benchmarks.suites.timing import timed
from benchmarks.table import Table
from benchmarks.workloads import decoding, inferring, products, random_ids, t5_products, training, weights_read

__all__ = ["decode", "forward", "prefill", "t5", "training_step"]

LIMIT = "weights read"
_PROMPT, _NEW = 16, 64
_READ, _WRITTEN = 64, 32

StepOf = Callable[[Contender], Step]


def forward(asked: Settings) -> Iterator[Table]:
    """Logits of a batch."""
    ids = random_ids(asked.shape.vocab, 2, min(512, asked.shape.length), asked.device)
    title = f"forward, {ids.shape[0]} x {ids.shape[1]} tokens"
    yield from _over_llamas(asked, title, "forward", lambda _: lambda each: inferring(each, ids))


def prefill(asked: Settings) -> Iterator[Table]:
    """Logits of one long row."""
    ids = random_ids(asked.shape.vocab, 1, asked.shape.length, asked.device)
    title = f"prefill, 1 x {ids.shape[1]} tokens"
    yield from _over_llamas(asked, title, "forward", lambda _: lambda each: inferring(each, ids))


def training_step(asked: Settings) -> Iterator[Table]:
    """Loss, gradients and AdamW."""
    ids = random_ids(asked.shape.vocab, 2, min(512, asked.shape.length), asked.device)
    title = f"training step, {ids.shape[0]} x {ids.shape[1]} tokens"
    yield from _over_llamas(asked, title, "training", lambda _: lambda each: training(each, ids))


def decode(asked: Settings) -> Iterator[Table]:
    """Greedy tokens of one row and of eight, with the limit of what must be read."""
    for rows in (1, 8):
        prompt = random_ids(asked.shape.vocab, rows, _PROMPT, asked.device)

        def limit(found: Sequence[Contender], rows: int = rows) -> Step:
            return weights_read(products(found, rows), _NEW)

        def steps(dtype: str, prompt: object = prompt) -> StepOf:
            return lambda each: decoding(each, prompt, _NEW, compares=dtype == "float32")

        title = f"decode {_NEW} tokens, {rows} row{'s' * (rows > 1)}"
        yield from _over_llamas(asked, title, "decoding", steps, limit)


def _over_llamas(
    asked: Settings,
    title: str,
    page: str,
    steps: Callable[[str], StepOf],
    limit: Callable[[Sequence[Contender]], Step] | None = None,
) -> Iterator[Table]:
    """Make a table for each dtype, eager and compiled."""
    for dtype in asked.dtypes:
        found, absent = llamas(asked.shape, dtype_of(dtype), asked.device, asked.without)
        yield from _tables(asked, f"{title}, {dtype}", page, found, absent, steps(dtype), dtype, limit)


def t5(asked: Settings) -> Iterator[Table]:
    """What an encoder takes, and what writing takes after it."""
    for dtype in asked.dtypes:
        found, absent = encoder_decoders(asked.t5_shape, dtype_of(dtype), asked.device, asked.without)
        ids = random_ids(asked.t5_shape.vocab, 2, 256, asked.device)
        title = f"T5 encode, {ids.shape[0]} x {ids.shape[1]} tokens, {dtype}"
        yield from _tables(asked, title, "t5", found, absent, lambda each, ids=ids: inferring(each, ids), dtype)
        for rows in (1, 8):
            read = random_ids(asked.t5_shape.vocab, rows, _READ, asked.device)

            def step(each: Contender, read: object = read, compares: bool = dtype == "float32") -> Step:
                return decoding(each, read, _WRITTEN, compares=compares)

            def limit(found: Sequence[Contender], rows: int = rows) -> Step:
                return weights_read(t5_products(found, rows), _WRITTEN)

            title = f"T5 read {_READ} and write {_WRITTEN} tokens, {rows} row{'s' * (rows > 1)}, {dtype}"
            yield from _tables(asked, title, "t5", found, absent, step, dtype, limit)


def _tables(
    asked: Settings,
    title: str,
    page: str,
    found: Sequence[Contender],
    absent: dict[str, str],
    step: StepOf,
    dtype: str,
    limit: Callable[[Sequence[Contender]], Step] | None = None,
) -> Iterator[Table]:
    for mode in asked.modes:
        steps = {each.name: step(each) for each in found} if mode == "eager" else _compiled_steps(found, step)
        if limit is not None:
            steps[LIMIT] = limit(found)
        yield timed(
            f"{title}, {mode}",
            page,
            steps,
            asked,
            tolerance=TOLERANCES[dtype_of(dtype)],
            absent=absent,
            limit=LIMIT if limit else None,
        )


def _compiled_steps(found: Sequence[Contender], step: StepOf) -> dict[str, Step]:
    """Compile each library once, and keep the hand-written model as it is to be compared with."""
    steps = {each.name: step(each) for each in found if each.name == BASE}
    compiled = (each.compiled() for each in found if "," not in each.name)
    return steps | {f"{each.name}, compiled": step(each) for each in compiled}
