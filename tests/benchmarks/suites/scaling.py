"""How cost grows with layers, tokens, rows and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.contenders.contender import TOLERANCES, Contender
from benchmarks.contenders.everybody import llamas
from benchmarks.measure import Step
from benchmarks.monolith import Shape
from benchmarks.settings import Settings
from benchmarks.suites.ranks import over_ranks
from benchmarks.suites.timing import timed
from benchmarks.table import ONLY, Table
from benchmarks.workloads import inferring, random_ids, training

__all__ = ["scaling"]

_NARROW = Shape(vocab=512, hidden=128, layers=2, heads=4, groups=2, ffn=352, length=8192)
_AXES: dict[str, Sequence[int]] = {
    "layers": (2, 4, 8, 16, 32, 64),
    "tokens": (128, 256, 512, 1024, 2048, 4096, 8192),
    "rows": (1, 2, 4, 8, 16),
}


def scaling(asked: Settings) -> Iterator[Table]:
    """Measure a narrow Llama, for which what is not arithmetic counts most."""
    for what in ("forward", "training step"):
        for axis, numbers in _AXES.items():
            yield _curve(asked, what, axis, numbers[:3] if asked.small else numbers)
    yield over_ranks(asked)


def _curve(asked: Settings, what: str, axis: str, numbers: Sequence[int]) -> Table:
    samples: dict[str, dict[str, Sequence[float]]] = {}
    absent: dict[str, str] = {}
    for number in numbers:
        layers, tokens, rows = (number if axis == each else least for each, least in _least(axis).items())
        shape = replace(_NARROW, layers=layers, length=max(tokens, 256))
        found, missing = llamas(shape, torch.float32, "cpu", asked.without)
        ids = random_ids(shape.vocab, rows, tokens)
        steps = {each.name: _step(what, each, ids) for each in found if "," not in each.name}
        point = timed("", "", steps, asked, tolerance=TOLERANCES[torch.float32], absent=missing)
        absent |= {name: why for name, why in point.absent.items() if "," not in name}
        for name, seconds in point.samples.items():
            samples.setdefault(name, {})[str(number)] = seconds[ONLY]
    note = f"Width {_NARROW.hidden}, float32, eager; otherwise {_fixed(axis)}."
    return Table(
        name=f"{what}, over {axis}",
        page="scaling",
        unit="s",
        samples=samples,
        axis=axis,
        absent=absent,
        note=note,
        taken=asked.described(),
    )


def _least(axis: str) -> dict[str, int]:
    return {"layers": 2, "tokens": 64 if axis == "layers" else 128, "rows": 1}


def _fixed(axis: str) -> str:
    return ", ".join(f"{number} {name}" for name, number in _least(axis).items() if name != axis)


def _step(what: str, each: Contender, ids: torch.Tensor) -> Step:
    return inferring(each, ids) if what == "forward" else training(each, ids)
