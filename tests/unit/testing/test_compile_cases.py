from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.testing import ConformanceError
from transom.testing.compile_cases import compile_cases
from transom.testing.exercise import Exercise
from transom.testing.subject import Subject


@torch.library.custom_op("transom_kit_tests::double", mutates_args=())
def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@_double.register_fake
def _(x):
    return torch.empty_like(x)


_double.register_autograd(lambda ctx, grad: 2 * grad)


@torch.library.custom_op("transom_kit_tests::undifferentiable", mutates_args=())
def _undifferentiable(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Doubling(nn.Module):
    def forward(self, x):
        return torch.ops.transom_kit_tests.double(x)


class Undifferentiable(nn.Module):
    def forward(self, x):
        return torch.ops.transom_kit_tests.undifferentiable(x)


class Twice(nn.Module):
    """Runs another graph for every width."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x):
        return x[..., : self.width].sum() + x


def _cases(norm, make) -> dict:
    exercise = Exercise(
        lambda layer_number, device=None: make(layer_number),
        lambda: {"x": torch.randn(2, 4, dtype=torch.float64)},
        lambda module, inputs: {"output": module(inputs["x"])},
    )
    return {case.name: case for case in compile_cases(Subject(norm(compiles=True)), exercise)}


def test_right_custom_operator_passes(norm):
    cases = _cases(norm, lambda number: Doubling())
    cases["custom_ops"].run()
    cases["compile"].run()


def test_custom_operator_without_a_fake_kernel_is_caught(norm):
    with pytest.raises(ConformanceError, match=r"^transom_kit_tests\.undifferentiable\.default: "):
        _cases(norm, lambda number: Undifferentiable())["custom_ops"].run()


def test_module_without_custom_operators_passes(norm):
    _cases(norm, lambda number: nn.ReLU())["custom_ops"].run()


def test_module_that_compiles_anew_for_a_layer_is_caught(norm):
    with pytest.raises(ConformanceError, match=r"^layer 2 was compiled anew: 2 graphs so far, expected 1"):
        _cases(norm, Twice)["compile"].run()
