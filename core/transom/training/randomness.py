"""Random numbers of a run's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from transom.checkpoint.random_state import random_tensors, restore_random

__all__ = ["seeded_generators"]


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed torch's, Python's and numpy's global generators; at the end they are as they were."""
    before = random_tensors()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        restore_random(before)
