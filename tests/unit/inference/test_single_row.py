"""Linears of a single row as sums of products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transom.inference.single_row import SingleRowProducts


class Summing:
    """Counts how often a tensor is summed."""

    def __init__(self, monkeypatch):
        self.count = 0
        summed = torch.Tensor.sum

        def sum_(*args, **kwargs):
            self.count += 1
            return summed(*args, **kwargs)

        monkeypatch.setattr(torch.Tensor, "sum", sum_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_of_one_row_is_a_sum_of_products(shape, dtype, bias, monkeypatch):
    linear, x = nn.Linear(6, 5, bias=bias, dtype=dtype), torch.randn(shape).to(dtype)
    summing = Summing(monkeypatch)
    with SingleRowProducts():
        found = linear(x)
    assert summing.count == 1
    assert found.dtype == dtype
    wide = linear.double()(x.double())
    torch.testing.assert_close(found.double(), wide, atol=20 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("shape", [(2, 6), (1, 2, 6), (2, 1, 6)])
def test_a_linear_of_several_rows_stays_as_it_is(shape, monkeypatch):
    linear, x = nn.Linear(6, 5), torch.randn(shape)
    summing = Summing(monkeypatch)
    with SingleRowProducts():
        found = linear(x)
    assert summing.count == 0
    assert torch.equal(found, linear(x))


def test_a_weight_of_another_kind_stays_as_it_is(monkeypatch):
    class Packed(torch.Tensor):
        """A weight that only knows how to be multiplied whole."""

    weight, x = torch.randn(5, 6).as_subclass(Packed), torch.randn(1, 6)
    summing = Summing(monkeypatch)
    with SingleRowProducts():
        found = F.linear(x, weight)
    assert summing.count == 0
    assert type(found) is Packed


def test_other_functions_stay_as_they_are():
    x, table = torch.tensor([[1]]), torch.randn(3, 4)
    with SingleRowProducts():
        assert torch.equal(F.embedding(x, table), table[1:2, None])
        assert torch.equal(torch.ones(1, 4) @ table.T, (torch.ones(1, 4) @ table.T))
