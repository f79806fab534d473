from __future__ import annotations

import random

import numpy as np
import torch
from transom.training.randomness import seeded_generators


def _draw():
    return torch.rand(2).tolist(), random.random(), np.random.rand()


def test_draws_depend_on_the_seed_alone():
    with seeded_generators(3):
        first = _draw()
    _draw()
    with seeded_generators(3):
        assert _draw() == first
    with seeded_generators(2**63 - 1):
        assert _draw() != first


def test_generators_are_as_before_afterwards():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = _draw()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    with seeded_generators(3):
        _draw()
    assert _draw() == expected
