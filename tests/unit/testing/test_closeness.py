from __future__ import annotations

import re

import pytest
import torch
from transom.testing import ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close, assert_same


def test_assert_close_allows_what_the_largest_element_allows():
    expected = torch.tensor([1000.0, 0.001], dtype=torch.float64)
    assert_close(torch.tensor([1000.5, 0.5]), expected, 1e-3, "x")


def test_assert_close_names_the_worst_place_and_the_share():
    expected = torch.zeros(2, 3, dtype=torch.float64)
    expected[1, 2] = 2.0
    found = torch.zeros(2, 3)
    found[0, 1] = 0.5
    found[1, 2] = -2.0
    said = "x: -2 at [1, 2], expected 2; 33% of 6 elements are off by more than 0.01 of the largest, 2"
    with pytest.raises(ConformanceError, match=f"^{re.escape(said)}$"):
        assert_close(found, expected, 1e-2, "x")


@pytest.mark.parametrize("number", [torch.nan, torch.inf], ids=["nan", "infinity"])
def test_assert_close_refuses_what_is_not_finite(number):
    with pytest.raises(ConformanceError, match=rf"^x: {number} at \[0\], expected 1"):
        assert_close(torch.tensor([number, 1.0]), torch.ones(2, dtype=torch.float64), 10.0, "x")


def test_assert_close_refuses_another_shape():
    with pytest.raises(ConformanceError, match=r"^x: shape \[1, 2\], expected \[2\]$"):
        assert_close(torch.ones(1, 2), torch.ones(2).double(), 1.0, "x")


def test_assert_close_accepts_nothing_for_nothing():
    assert_close(torch.ones(0, 2), torch.ones(0, 2).double(), 0.0, "x")


def test_assert_close_judges_zeros_absolutely():
    zeros = torch.zeros(2, dtype=torch.float64)
    assert_close(torch.tensor([1e-6, 0.0]), zeros, 1e-5, "x")
    with pytest.raises(ConformanceError, match=r"^x: 0\.1 at \[0\], expected 0"):
        assert_close(torch.tensor([0.1, 0.0]), zeros, 1e-5, "x")


def test_assert_same_asks_for_the_same_bits():
    assert_same(torch.tensor([1.0]), torch.tensor([1.0]), "x")
    with pytest.raises(ConformanceError, match=r"^x: the bits differ, by up to 0\.25$"):
        assert_same(torch.tensor([1.25]), torch.tensor([1.0]), "x")
    with pytest.raises(ConformanceError, match=r"^x: shape \[1\], expected \[2\]$"):
        assert_same(torch.tensor([1.0]), torch.tensor([1.0, 1.0]), "x")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_tolerances_are_above_the_rounding_of_their_dtype(dtype):
    rounding = torch.finfo(getattr(torch, dtype)).eps
    assert rounding < TOLERANCES[dtype].outputs < TOLERANCES[dtype].gradients < 0.1
