"""What a run of the benchmarks was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.measure import CLOCKS, Clock
from benchmarks.monolith import Shape
from benchmarks.monolith_t5 import T5Shape

__all__ = ["Settings", "dtype_of"]

_SMALL = Shape(vocab=512, hidden=128, layers=2, heads=4, groups=2, ffn=352, length=256)
_SMALL_T5 = T5Shape(vocab=512, hidden=128, layers=2, heads=4, ffn=256)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Args:
        rounds: how often each contender is timed.
        clock_name: of `CLOCKS`.
        dtypes: names of those to be measured.
        modes: ``"eager"``, ``"compiled"``, or both; empty = each suite's own, for compiling takes minutes.
        without: contenders that are left out.
        small: tiny models, to try the suite itself.
    """

    rounds: int = 7
    clock_name: str = "wall"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    modes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    small: bool = False

    @property
    def clock(self) -> Clock:
        """In seconds."""
        return CLOCKS[self.clock_name]

    @property
    def shape(self) -> Shape:
        """Of the Llamas."""
        return _SMALL if self.small else Shape()

    @property
    def t5_shape(self) -> T5Shape:
        """Of the T5s."""
        return _SMALL_T5 if self.small else T5Shape()

    def modes_of(self, dtype: str, *, compiles: bool) -> tuple[str, ...]:
        """Give the modes of a workload.

        Args:
            dtype: that it is run in.
            compiles: it is compiled where nobody says which modes, in float32.
        """
        return self.modes or (("eager", "compiled") if compiles and dtype == "float32" else ("eager",))

    def described(self) -> dict[str, str]:
        """Give what must be known of a table beside its name."""
        clock = {"wall": "wall clock", "cpu": "time of the processor"}[self.clock_name]
        return {"settings": f"{self.rounds} rounds, {clock}, {torch.get_num_threads()} threads"}


def dtype_of(name: str) -> torch.dtype:
    """Give a dtype by its name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
