"""Interleaved measurement: contenders take turns in every round, so that what else a machine does hits them all."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["CLOCKS", "Clock", "Step", "give_memory_back", "interleaved", "reason", "usable"]

Step = Callable[[], object]
"""One repetition of a workload, ready to be timed."""

Clock = Callable[[], float]


def _wall() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: Mapping[str, Clock] = {"wall": _wall, "cpu": time.process_time}
"""``cpu`` counts the time of this process on all its cores: for machines on which others run too."""


def usable(steps: Mapping[str, Step]) -> tuple[dict[str, Step], dict[str, str], dict[str, object]]:
    """Run every step once beforehand, and take out those that cannot be run.

    Args:
        steps: by contender.

    Returns:
        those that ran, the reasons of the others, and what each gave.
    """
    running, absent, results = dict(steps), {}, {}
    for name, step in steps.items():
        try:
            results[name] = step()
        except Exception as error:  # a library may raise whatever it likes
            absent[name] = reason(error)
            del running[name]
    return running, absent, results


def interleaved(
    steps: Mapping[str, Step], *, rounds: int, clock: Clock, before: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Time steps that take turns, each beginning about as many rounds as any other.

    Args:
        steps: by contender; they have been run before.
        rounds: how often each is timed.
        clock: in seconds.
        before: called before each step, outside of its time.

    Returns:
        seconds of each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    with _no_collection():
        for number in range(rounds):
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                before()
                start = clock()
                steps[name]()
                taken[name].append(clock() - start)
            gc.collect()
    return {name: tuple(times) for name, times in taken.items()}


def give_memory_back() -> None:
    """Give the system back what the C library keeps for later, so that the next step begins without it.

    Whether memory is new makes a third of the time of building a model, and how much the library keeps depends on what
    happens to lie behind it: of two contenders that were the same function, one took 0.95 of the other's time. Does
    nothing where the library is not the one of GNU.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reason(error: Exception) -> str:
    """Say in one line why something could not be done."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()}"[:200]


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
