"""Autograd functions applied directly: the gradients, the transforms of `torch.func`, and what is spared."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transom.transformer.direct_function import DirectFunction


class Cubed(DirectFunction):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return factor * x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * 3 * ctx.factor * ctx.saved_tensors[0] ** 2, None


def test_apply_gives_value_and_gradient() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = Cubed.apply(x, 0.5)
    out.sum().backward()
    assert out.tolist() == [0.5, -4.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.5, 6.0]


def test_apply_can_be_differentiated_twice() -> None:
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: Cubed.apply(x, 2.0), x)


def test_apply_serves_the_transforms_of_torch_func() -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    slopes = torch.func.vmap(torch.func.grad(lambda each: Cubed.apply(each, 2.0)))(x)
    torch.testing.assert_close(slopes, 6 * x**2)


def test_apply_inspects_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a signature is inspected")

    monkeypatch.setattr(inspect, "signature", refuse)
    assert Cubed.apply(torch.ones(1, requires_grad=True), 1.0).requires_grad
