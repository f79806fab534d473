"""How many graphs torch.compile makes while a sequence grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.contenders.contender import Contender
from benchmarks.contenders.everybody import llamas
from benchmarks.measure import reason
from benchmarks.monolith import Shape
from benchmarks.settings import Settings
from benchmarks.table import Table
from benchmarks.workloads import random_ids

__all__ = ["compilation"]

_TINY = Shape(vocab=256, hidden=64, layers=2, heads=2, groups=1, ffn=96, length=256)
_NEW = (2, 64)
_LENGTHS = (24, 32, 40)
_PROMPT = 8

Count = Callable[[Contender, int], int]


def compilation(asked: Settings) -> Iterator[Table]:
    """Count graphs; one is the ideal, and a number that grows is a compilation in the middle of a text."""
    with _only_traced():
        found, absent = llamas(_TINY, torch.float32, "cpu", asked.without)
        found = [each for each in found if "," not in each.name]
        absent = {name: why for name, why in absent.items() if "," not in name}
        yield _counts("graphs while one sequence is decoded", "new tokens", _NEW, _decoding, found, absent)
        yield _counts("graphs over forward passes of growing length", "lengths", (1, 3), _forward, found, absent)


@contextmanager
def _only_traced() -> Iterator[None]:
    """Let everybody's graphs be made and run as they are: their number does not depend on what code comes of them."""
    compile_ = torch.compile

    def traced(model: Any = None, **settings: Any) -> Any:
        return compile_(model, **_how(settings), backend="eager")

    with mock.patch("torch.compile", traced):
        yield


def _how(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in ("fullgraph", "dynamic")}


def _decoding(contender: Contender, count: int) -> int:
    prompt = random_ids(_TINY.vocab, 1, _PROMPT)
    contender.module.eval()
    contender.compiled().decoding(prompt, count)()
    return _graphs()


def _forward(contender: Contender, lengths: int) -> int:
    compiled = contender.compiled()
    contender.module.eval()
    with torch.inference_mode():
        for length in _LENGTHS[:lengths]:
            compiled.logits(random_ids(_TINY.vocab, 1, length))
    return _graphs()


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _counts(
    name: str, axis: str, numbers: Sequence[int], count: Count, found: Sequence[Contender], absent: dict[str, str]
) -> Table:
    samples: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    for each in found:
        try:
            samples[each.name] = {f"{number} {axis}": [_anew(count, each, number)] for number in numbers}
        except Exception as error:  # torch and libraries raise whatever they like
            failed[each.name] = reason(error)
    return Table(
        name=name,
        page="compilation",
        unit="",
        samples=samples,
        absent={**absent, **failed},
        note="Counted from the first token or pass on, anew for each column; the model has 2 layers and is narrow.",
    )


def _anew(count: Count, contender: Contender, number: int) -> int:
    """Count in the contender compiled anew; what it compiled when it was made is forgotten too."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    return count(contender, number)
