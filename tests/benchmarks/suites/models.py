"""Whole models: forward, prefill, training step and decoding of Llamas; encoding and decoding of T5s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.contenders.contender import BASE, TOLERANCES, Contender
from benchmarks.contenders.everybody import encoder_decoders, llamas
from benchmarks.measure import Step
from benchmarks.settings import Settings, dtype_of
from benchmarks.suites.timing import timed
from benchmarks.table import Table
from benchmarks.workloads import decoding, inferring, products_of_a_step, random_ids, training, weights_read

__all__ = ["decode", "forward", "prefill", "t5", "training_step"]

READ = "weights read"
PRODUCTS = "products alone"
_COMPILED_TOO = frozenset({"transom, onednn_linear"})
"""Ways to fill Transom that are compiled beside the first: whose products are others."""

_PROMPT, _NEW = 16, 48
_READ, _WRITTEN = 64, 32


@dataclass(frozen=True)
class _Workload:
    """What everybody does.

    Args:
        title: of the table, to which dtype and mode are added.
        page: where it is shown.
        step: makes it for a contender.
        limit: the name, and what makes the step, of what nobody can do without; `None` = no limit is known.
        compiles: it is compiled too where nobody says which modes.
        beside: makes further steps, which stand beside everybody's.
    """

    title: str
    page: str
    step: Callable[[Contender], Step]
    limit: tuple[str, Callable[[Sequence[Contender]], Step]] | None = None
    compiles: bool = False
    beside: Callable[[Sequence[Contender]], dict[str, Step]] = lambda _: {}


def forward(asked: Settings) -> Iterator[Table]:
    """Logits of a batch."""
    ids = random_ids(asked.shape.vocab, 2, min(512, asked.shape.length))
    limit = PRODUCTS, partial(weights_read, rows=ids.numel())
    work = _Workload(f"forward, 2 x {ids.shape[1]} tokens", "forward", lambda each: inferring(each, ids), limit)
    yield from _over_llamas(asked, work)


def prefill(asked: Settings) -> Iterator[Table]:
    """Logits of one long row."""
    ids = random_ids(asked.shape.vocab, 1, min(1024, asked.shape.length))
    limit = PRODUCTS, partial(weights_read, rows=ids.numel())
    work = _Workload(f"prefill, 1 x {ids.shape[1]} tokens", "forward", lambda each: inferring(each, ids), limit)
    yield from _over_llamas(asked, work)


def training_step(asked: Settings) -> Iterator[Table]:
    """Loss, gradients and AdamW."""
    ids = random_ids(asked.shape.vocab, 2, min(512, asked.shape.length))
    title = f"training step, 2 x {ids.shape[1]} tokens"
    limit = PRODUCTS, partial(products_of_a_step, rows=ids.numel())
    work = _Workload(title, "training", lambda each: training(each, ids), limit, compiles=True)

    def unfused(found: Sequence[Contender]) -> dict[str, Step]:
        base = (each for each in found if each.name == BASE)
        return {f"{each.name}, AdamW not fused": training(each, ids, fused=False) for each in base}

    yield from _over_llamas(asked, replace(work, beside=unfused))


def decode(asked: Settings) -> Iterator[Table]:
    """Greedy tokens of one row and of eight, with the limit of what must be read."""
    for rows in (1, 8):
        prompt = random_ids(asked.shape.vocab, rows, _PROMPT)
        title = f"decode {_NEW} tokens, {rows} row{'s' * (rows > 1)}"
        step = partial(_decoding, prompt, _NEW)
        limit = READ, partial(weights_read, rows=rows, times=_NEW)
        yield from _over_llamas(asked, _Workload(title, "decoding", step, limit, compiles=rows == 1))


def t5(asked: Settings) -> Iterator[Table]:
    """What an encoder takes, and what reading and writing take together."""
    ids = random_ids(asked.t5_shape.vocab, 2, 256)
    yield from _over_t5s(asked, _Workload("T5 encode, 2 x 256 tokens", "t5", lambda each: inferring(each, ids)))
    for rows in (1, 8):
        read = random_ids(asked.t5_shape.vocab, rows, _READ)
        title = f"T5 read {_READ} and write {_WRITTEN} tokens, {rows} row{'s' * (rows > 1)}"
        limit = READ, partial(weights_read, rows=rows, times=_WRITTEN)
        yield from _over_t5s(asked, _Workload(title, "t5", partial(_decoding, read, _WRITTEN), limit))


def _decoding(prompt: torch.Tensor, count: int, contender: Contender) -> Step:
    return decoding(contender, prompt, count)


def _over_llamas(asked: Settings, work: _Workload) -> Iterator[Table]:
    for dtype in asked.dtypes:
        found, absent = llamas(asked.shape, dtype_of(dtype), "cpu", asked.without)
        yield from _over_modes(asked, work, dtype, found, absent)


def _over_t5s(asked: Settings, work: _Workload) -> Iterator[Table]:
    for dtype in asked.dtypes:
        found, absent = encoder_decoders(asked.t5_shape, dtype_of(dtype), "cpu", asked.without)
        yield from _over_modes(asked, work, dtype, found, absent)


def _over_modes(
    asked: Settings, work: _Workload, dtype: str, found: Sequence[Contender], absent: dict[str, str]
) -> Iterator[Table]:
    for mode in asked.modes_of(dtype, compiles=work.compiles):
        steps = {each.name: work.step(each) for each in found} if mode == "eager" else _compiled(found, work)
        steps |= work.beside(found)
        name, products = work.limit or (None, None)
        if name and products:
            steps[name] = products(found)
        yield timed(
            f"{work.title}, {dtype}, {mode}",
            work.page,
            steps,
            asked,
            tolerance=TOLERANCES[dtype_of(dtype)],
            absent=absent,
            limit=name,
        )


def _compiled(found: Sequence[Contender], work: _Workload) -> dict[str, Step]:
    """Compile each library once, and keep the hand-written model as it is to be compared with."""
    steps = {each.name: work.step(each) for each in found if each.name == BASE}
    compiled = (each.compiled() for each in found if "," not in each.name or each.name in _COMPILED_TOO)
    return steps | {f"{each.name}, compiled": work.step(each) for each in compiled}
