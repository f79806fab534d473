"""The gated unit of SwiGLU: as its formula has it, with nothing kept but its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transom.transformer.gated_silu import gated_silu


def formula(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def test_gated_silu_follows_its_formula() -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(gated_silu(x), formula(x))
    with torch.no_grad():
        before = x.clone()
        assert torch.equal(gated_silu(x), formula(x))
        assert torch.equal(x, before)


def test_gradient_is_right_to_the_second_order() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_silu, x)
    assert torch.autograd.gradgradcheck(gated_silu, x)


def test_gradient_is_right_when_functions_are_transformed() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    one_by_one = torch.func.vmap(torch.func.grad(lambda row: gated_silu(row).square().sum()))(x)
    (together,) = torch.autograd.grad(formula(x).square().sum(), x)
    torch.testing.assert_close(one_by_one, together)


def test_backward_pass_keeps_the_input_alone() -> None:
    kept: list[Tensor] = []
    x = torch.randn(2, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        gated_silu(x)
    assert [each.shape for each in kept] == [x.shape]


def test_backward_pass_allocates_the_gradient_alone() -> None:
    x = torch.randn(64, 8, requires_grad=True)
    output, grad = gated_silu(x), torch.randn(64, 4)
    with torch.profiler.profile(profile_memory=True) as profiled:
        torch.autograd.grad(output, x, grad)
    sizes = [each.nbytes() for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    assert [size for size in sizes if size >= grad.nbytes] == [x.nbytes]
