from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transom.checkpoint.random_state import random_tensors, restore_random
from transom.checkpoint.tensors import read_tensors, write_tensors
from transom.errors import CheckpointError


def _draw():
    return [
        torch.rand(3).tolist(),
        torch.randn(1).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
    ]


def test_generators_draw_the_same_again_after_a_way_through_a_file(tmp_path):
    # An odd number of normal draws leaves Python and numpy each with one in store.
    random.gauss(0, 1)
    np.random.randn()
    states = random_tensors()
    assert {tensor.dtype for tensor in states.values()} == {torch.uint8}
    write_tensors(tmp_path / "f", states)
    first = _draw()
    assert _draw() != first
    restore_random(read_tensors(tmp_path / "f"))
    assert _draw() == first


@pytest.mark.parametrize("name", ["torch", "python", "numpy"])
def test_restore_random_refuses_when_damaged(name):
    states = random_tensors()
    with pytest.raises(CheckpointError, match="the state of the random number generators is damaged: "):
        restore_random(states | {name: states[name][:9]})


@pytest.mark.parametrize("name", ["torch", "python", "numpy"])
def test_restore_random_refuses_when_one_is_missing(name):
    states = random_tensors()
    del states[name]
    with pytest.raises(CheckpointError, match=f"damaged: KeyError: '{name}'"):
        restore_random(states)
