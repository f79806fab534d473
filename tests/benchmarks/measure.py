"""Interleaved measurement: contenders take turns in every round, so that what else a machine does hits them all."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

Step = Callable[[], object]
Clock = Callable[[], float]

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts the time of this process on all its cores: for machines on which others run too."""


@dataclass(frozen=True)
class Figure:
    """What a contender took for one repetition, in seconds, over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Of the rounds."""
        return min(self.seconds)


@dataclass
class Table:
    """The figures of one workload.

    Args:
        workload: what was run, with its sizes.
        figures: by contender.
        absent: who could not take part, and why.
        limit: the name of the figure below which nothing can be; `None` = unknown.
    """

    workload: str
    figures: dict[str, Figure]
    absent: dict[str, str] = field(default_factory=dict)
    limit: str | None = None

    def ratio(self, name: str, to: str) -> float:
        """Compare two contenders round by round: the median of the rounds' ratios."""
        pairs = zip(self.figures[name].seconds, self.figures[to].seconds, strict=True)
        return statistics.median(one / other for one, other in pairs)


def interleaved(
    workload: str, steps: Mapping[str, Step], *, rounds: int, clock: Clock, warmup: int = 1, limit: str | None = None
) -> Table:
    """Time steps that take turns, each beginning as many rounds as any other.

    Args:
        workload: for the table.
        steps: by contender.
        rounds: how often each is timed.
        clock: in seconds.
        warmup: how often each runs beforehand.
        limit: which of the steps nobody can be faster than.

    Returns:
        the figures; who raised an error is absent, with the error.
    """
    absent: dict[str, str] = {}
    running = dict(steps)
    for name, step in steps.items():
        try:
            for _ in range(warmup):
                step()
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del running[name]
    taken: dict[str, list[float]] = {name: [] for name in running}
    with _no_collection():
        for number in range(rounds):
            names = list(running)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = clock()
                running[name]()
                taken[name].append(clock() - start)
            gc.collect()
    return Table(workload, {name: Figure(tuple(times)) for name, times in taken.items()}, absent, limit)


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def machine() -> dict[str, str]:
    """Say what was measured on, and with which versions."""
    packages = ("torch", "transom", "transformers", "torchtune", "x-transformers")
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "load before": " ".join(f"{each:.1f}" for each in os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        **{name: _version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]} x {len(names)}" if names else platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
