"""FP8 recipes: data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DelayedScaling:
    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"


@dataclass
class Float8CurrentScaling:
    pass


@dataclass
class Float8BlockScaling:
    pass
