"""Inputs that are made again: the same gradients, and less kept."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom.transformer.gated_silu import gated_silu
from transom.transformer.recompute import recomputed
from transom.transformer.remade_input import with_remade_input


def made_by(make: Any, made: list[Any]) -> Any:
    """Make, and note each that was made."""

    def noting(x: Tensor) -> Tensor:
        result = make(x)
        made.append(weakref.ref(result))
        return result

    return noting


def test_gradients_have_the_same_bits() -> None:
    linear, x = nn.Linear(4, 3), torch.randn(2, 5, 8, requires_grad=True)
    leaves = (x, linear.weight, linear.bias)
    expected = torch.autograd.grad(linear(gated_silu(x)).square().sum(), leaves)
    found = torch.autograd.grad(with_remade_input(linear, gated_silu, x).square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_are_right_to_the_second_order() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return with_remade_input(lambda made: F.linear(made, weight), gated_silu, x)

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


def test_what_was_made_is_gone_until_the_backward_pass_makes_it_again() -> None:
    made: list[Any] = []
    linear, x = nn.Linear(4, 3), torch.randn(2, 8, requires_grad=True)
    output = with_remade_input(linear, made_by(gated_silu, made), x)
    gc.collect()
    assert [each() for each in made] == [None]
    output.sum().backward()
    assert len(made) == 2


def test_input_is_made_once_when_nothing_is_differentiated() -> None:
    made: list[Any] = []
    with torch.no_grad():
        with_remade_input(nn.Linear(4, 3), made_by(gated_silu, made), torch.randn(2, 8))
    assert len(made) == 1


def test_input_is_kept_when_a_module_makes_it() -> None:
    dropout, x = nn.Dropout(0.5), torch.randn(4, 4, requires_grad=True)
    linear = nn.Linear(4, 4, bias=False)
    torch.manual_seed(0)
    with_remade_input(linear, dropout, x).sum().backward()
    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(linear(dropout(x)).sum(), linear.weight)
    assert torch.equal(linear.weight.grad, expected)


def test_a_layer_that_is_recomputed_as_a_whole_decides_itself() -> None:
    made: list[Any] = []
    linear, x = nn.Linear(4, 3), torch.randn(2, 8, requires_grad=True)
    recomputed(lambda x: with_remade_input(linear, made_by(gated_silu, made), x), x).sum().backward()
    assert len(made) == 2  # in the forward pass and in the recomputed one


def test_functions_can_be_transformed() -> None:
    linear, x = nn.Linear(4, 3), torch.randn(2, 8)
    found = torch.func.grad(lambda x: with_remade_input(linear, gated_silu, x).sum())(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(linear(gated_silu(leaf)).sum(), leaf)
    torch.testing.assert_close(found, expected)
