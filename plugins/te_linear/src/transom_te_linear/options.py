"""What can be chosen of the implementations on Transformer Engine: how they compute in FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["TeOptions"]


@final
@dataclass(frozen=True, kw_only=True)
class TeOptions:
    """Options of ``te_linear``, ``te_layernorm_linear`` and ``te_layernorm_mlp``.

    Args:
        recipe: how numbers are scaled to FP8: ``"delayed"``, by the largest of earlier steps; ``"current"``, by the
            largest of this tensor; ``"block"``, by the largest of each block. `None` = no FP8.
        margin: with ``"delayed"``: scales are smaller by 2 to this power.
        amax: with ``"delayed"``: which of the earlier largest numbers counts, ``"max"`` or ``"most_recent"``.
        amax_history: with ``"delayed"``: how many earlier steps are looked at.
        overlap: communicate while computing, in buffers under the names that linears are given; the program must have
            called ``transformer_engine.pytorch.initialize_ub`` before. Linears alone do, with sequence parallelism.

    Example:
        >>> TeOptions(recipe="current").amax
        'max'
    """

    recipe: Literal["delayed", "current", "block"] | None = None
    margin: int = 0
    amax: Literal["max", "most_recent"] = "max"
    amax_history: int = 1024
    overlap: bool = False
