"""Whether two implementations computed the same."""

from __future__ import annotations

import math

import pytest
import torch
from transom.comparison.agreement import ALLOWED, difference, disagreement
from transom.testing.closeness import TOLERANCES

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        pytest.param([2.0, 5.0], [2.0, 4.0], 0.25, id="relative to the largest"),
        pytest.param([0.0, 3.0], [0.0, 0.0], 3.0, id="absolute where all are zero"),
        pytest.param([INF, 5.0], [INF, 4.0], 0.25, id="the same infinity"),
        pytest.param([INF, 4.0], [-INF, 4.0], INF, id="another infinity"),
        pytest.param([NAN, 4.0], [1.0, 4.0], INF, id="not a number"),
        pytest.param([1.0], [1.0, 4.0], INF, id="another shape"),
        pytest.param([], [], 0.0, id="nothing"),
    ],
)
def test_difference_is_the_largest_relative_to_the_largest_element(found, reference, expected):
    assert difference([torch.tensor(found)], [torch.tensor(reference)]) == expected


def test_difference_of_another_number_of_tensors_is_infinite():
    assert difference([], [torch.ones(1)]) == INF


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([torch.tensor([1.0, 2.0])], ""),
        ([torch.tensor([1.0, 2.5])], "its outputs differ by 2.5e-01, where 1e-01 is allowed"),
        ([torch.tensor([1.0, NAN])], "its outputs have NaN"),
        ([torch.tensor([1.0, 2.0]).half()], "its outputs are float16 and not float32"),
        ([torch.tensor([[1.0, 2.0]])], "its outputs are [1, 2] and not [2]"),
        ([torch.tensor([1.0, 2.0])] * 2, "its outputs are 2 tensors and not 1"),
    ],
)
def test_disagreement_says_what_differs(found, text):
    assert disagreement("outputs", found, [torch.tensor([1.0, 2.0])], 0.1) == text


def test_allowed_is_what_conformance_allows_each_of_two():
    doubled = {dtype: (2 * each.outputs, 2 * each.gradients) for dtype, each in TOLERANCES.items()}
    assert {dtype: pytest.approx(each) for dtype, each in ALLOWED.items()} == doubled
