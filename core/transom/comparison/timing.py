"""Times of several callables that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Times", "interleaved"]

_LEAST = 0.005
"""Seconds that a measurement takes at least: shorter calls are repeated within it."""


@dataclass(frozen=True)
class Times:
    """How long one call took, in seconds, in each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Over the rounds."""
        return min(self.seconds)

    def ratio(self, to: Times) -> float:
        """Compare with another round by round: the median of the ratios, below 1 where this is faster."""
        return statistics.median(one / other for one, other in zip(self.seconds, to.seconds, strict=True))


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int, device: str) -> dict[str, Times]:
    """Time callables that take turns, so that whatever else the machine does hits all of them.

    Args:
        calls: by name; each is called once before anything is timed.
        rounds: how often each is timed, in another order each round.
        device: type of the device that they compute on; it is waited for.

    Returns:
        the times of one call, by name.
    """
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    for call in calls.values():
        call()
    repeats = {name: max(1, round(_LEAST / max(_timed(call, 1, wait), 1e-9))) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_timed(calls[name], repeats[name], wait))
    return {name: Times(tuple(each)) for name, each in seconds.items()}


def _timed(call: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def _nothing() -> None:
    pass
