from __future__ import annotations

import math

import pytest
from transom.specs.train_spec import TrainSpec
from transom.training.schedule import learning_rate

SETTINGS = TrainSpec(steps=110, warmup_steps=10, learning_rate=0.5, min_learning_rate=0.1)


def test_learning_rate_rises_linearly_to_its_peak():
    assert [learning_rate(step, SETTINGS) for step in range(10)] == pytest.approx([0.05 * (i + 1) for i in range(10)])


def test_learning_rate_follows_half_a_cosine_to_its_end():
    expected = [0.3 + 0.2 * math.cos(math.pi * (i + 1) / 100) for i in range(100)]
    assert [learning_rate(10 + i, SETTINGS) for i in range(100)] == pytest.approx(expected)
    assert learning_rate(59, SETTINGS) == pytest.approx(0.3)
    assert learning_rate(109, SETTINGS) == pytest.approx(0.1)


def test_learning_rate_stays_at_its_end():
    assert learning_rate(5000, SETTINGS) == pytest.approx(0.1)


def test_learning_rate_starts_at_its_peak_without_warmup():
    settings = TrainSpec(steps=1000, warmup_steps=0, learning_rate=0.5)
    assert learning_rate(0, settings) == pytest.approx(0.5, rel=1e-4)


def test_learning_rate_is_defined_when_the_warmup_outlasts_the_run():
    settings = TrainSpec(steps=5, warmup_steps=10, learning_rate=1.0)
    assert [learning_rate(step, settings) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
