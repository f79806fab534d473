"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transom.specs.train_spec import TrainSpec

__all__ = ["learning_rate"]


def learning_rate(step: int, settings: TrainSpec) -> float:
    """Give the learning rate of a step: a linear rise, then half a cosine.

    Args:
        step: from 0.
        settings: of which ``learning_rate`` is reached at the end of ``warmup_steps``, and ``final_learning_rate`` at
            the last of ``steps``; later steps stay there.

    Returns:
        the learning rate.

    Example:
        >>> from transom.specs.train_spec import TrainSpec
        >>> settings = TrainSpec(steps=6, warmup_steps=2, learning_rate=1.0, min_learning_rate=0.0)
        >>> [round(learning_rate(step, settings), 3) for step in range(6)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    peak, low, warmup = settings.learning_rate, settings.final_learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, settings.steps - warmup))
    return low + (peak - low) * (1 + math.cos(math.pi * progress)) / 2
