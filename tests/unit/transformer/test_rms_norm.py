"""RMSNorm: the formula, few operations, and its gradients."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transom.transformer.recompute import recomputed
from transom.transformer.rms_norm import rms_norm, with_remade_norm


class Operations(TorchDispatchMode):
    """Counts operations, views left out."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += "view" not in func.name() and func is not torch.ops.aten.t.default
        return func(*args, **(kwargs or {}))


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 8, dtype=dtype, requires_grad=True), torch.randn(8, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rms_norm_is_the_formula(dtype: torch.dtype, size: float) -> None:
    x, scale = inputs(dtype)
    x = x.detach() * size
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale.double()
    torch.testing.assert_close(rms_norm(x, scale, 1e-5), expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert rms_norm(torch.zeros(3), torch.ones(3), 1e-5).tolist() == [0, 0, 0]


def test_rms_norm_serves_training_when_its_first_call_was_in_inference_mode() -> None:
    x, scale = inputs()
    with torch.inference_mode():
        rms_norm(x, scale, 0.12345)
    rms_norm(x, scale, 0.12345).sum().backward()
    assert x.grad is not None


def test_a_norm_of_one_token_is_five_operations() -> None:
    x, scale = inputs()
    with torch.inference_mode(), Operations() as seen:
        rms_norm(x, scale, 1e-5)
    assert seen.number == 5


def test_rms_norm_has_the_same_bits_when_nothing_is_differentiated() -> None:
    x, scale = inputs(torch.float32)
    with torch.no_grad():
        expected = rms_norm(x, scale, 1e-5)
    assert torch.equal(rms_norm(x, scale, 1e-5), expected)


def test_gradients_are_right_to_the_second_order() -> None:
    x, scale = inputs()
    assert torch.autograd.gradcheck(lambda *each: rms_norm(*each, 1e-5), (x, scale))
    assert torch.autograd.gradgradcheck(lambda *each: rms_norm(*each, 1e-5), (x, scale))


def test_gradients_are_right_when_functions_are_transformed() -> None:
    x, scale = inputs()
    one_by_one = torch.func.vmap(torch.func.grad(lambda row: rms_norm(row, scale, 1e-5).square().sum()))(x)
    (together,) = torch.autograd.grad(F.rms_norm(x, (8,), scale, 1e-5).square().sum(), x)
    torch.testing.assert_close(one_by_one, together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_narrow_inputs_are_rounded_once(dtype: torch.dtype) -> None:
    x, scale = inputs(dtype)
    wide = [each.detach().double().requires_grad_() for each in (x, scale)]
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(F.rms_norm(wide[0], (8,), wide[1], 1e-5), wide, grad.double())
    for create_graph in (False, True):  # by the formula, and by operations that can be differentiated again
        found = torch.autograd.grad(rms_norm(x, scale, 1e-5), (x, scale), grad, create_graph=create_graph)
        for own, right in zip(found, expected, strict=True):
            torch.testing.assert_close(own, right.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_backward_pass_keeps_no_normed_copy_and_no_wide_one(dtype: torch.dtype, size: int) -> None:
    kept: list[int] = []
    x, scale = inputs(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.nbytes) or each, lambda each: each):
        rms_norm(x, scale, 1e-5)
    # a number a token, which is float32 at least; the scale; the input
    assert sorted(kept) == sorted([6 * max(size, 4), 8 * size, 48 * size])


def test_backward_pass_is_a_few_operations() -> None:
    x, scale = inputs()
    normed = rms_norm(x, scale, 1e-5)
    with Operations() as seen:
        torch.autograd.grad(normed, (x, scale), torch.ones_like(normed))
    assert seen.number <= 14


class Linear:
    """A product with a weight that notes its input."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.weight = torch.randn(5, 8, dtype=dtype, requires_grad=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.read = weakref.ref(x)
        return F.linear(x, self.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradients_have_the_same_bits_when_a_norm_is_remade(dtype: torch.dtype) -> None:
    x, scale = inputs(dtype)
    linear = Linear(dtype)
    leaves = (x, scale, linear.weight)
    expected = torch.autograd.grad(linear(rms_norm(x, scale, 1e-5)).square().sum(), leaves)
    found = torch.autograd.grad(with_remade_norm(linear, rms_norm(x, scale, 1e-5)).square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_are_right_to_the_second_order_when_a_norm_is_remade() -> None:
    x, scale = inputs()
    weight = Linear(torch.float64).weight

    def run(x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return with_remade_norm(lambda normed: F.linear(normed, weight), rms_norm(x, scale, 1e-5))

    assert torch.autograd.gradcheck(run, (x, scale, weight))
    assert torch.autograd.gradgradcheck(run, (x, scale, weight))


def is_kept(run: Callable[[], torch.Tensor], linear: Linear) -> bool:
    """Whether the input of a linear is still there when its output is."""
    output = run()
    gc.collect()
    assert output.requires_grad
    return linear.read() is not None


def test_a_remade_norm_is_not_kept() -> None:
    x, scale = inputs()
    linear = Linear(torch.float64)
    assert is_kept(lambda: linear(rms_norm(x, scale, 1e-5)), linear)
    assert not is_kept(lambda: with_remade_norm(linear, rms_norm(x, scale, 1e-5)), linear)


def test_what_no_norm_made_is_kept() -> None:
    x, _ = inputs()
    linear = Linear(torch.float64)
    assert is_kept(lambda: with_remade_norm(linear, x * 2), linear)


def test_a_norm_is_kept_when_others_say_what_is_kept() -> None:
    x, scale = inputs()
    linear = Linear(torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: each, lambda each: each):
        assert is_kept(lambda: with_remade_norm(linear, rms_norm(x, scale, 1e-5)), linear)


def test_a_norm_that_is_recomputed_is_computed_twice_and_no_more() -> None:
    x, scale = inputs()
    linear, computed = Linear(torch.float64), []

    def norm(x: torch.Tensor) -> torch.Tensor:
        computed.append(x)
        return rms_norm(x, scale, 1e-5)

    output = with_remade_norm(linear, recomputed(norm, x))
    assert len(computed) == 1
    output.sum().backward()
    assert len(computed) == 2


def test_a_remade_norm_can_be_transformed() -> None:
    x, scale = inputs()
    linear = Linear(torch.float64)
    found = torch.func.grad(lambda x: with_remade_norm(linear, rms_norm(x, scale, 1e-5)).sum())(x.detach())
    (expected,) = torch.autograd.grad(linear(rms_norm(x, scale, 1e-5)).sum(), x)
    torch.testing.assert_close(found, expected)
