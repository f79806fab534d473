"""The grouped products against products one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transom_moe.grouped import grouped_linear, grouped_outer, kernel_linear, kernel_outer
from transom_moe.order import Order

COUNTS = torch.tensor([3, 0, 5, 1])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    return torch.randn(9, 16, dtype=dtype), [torch.randn(8, 16, dtype=dtype) for _ in range(4)]


def one_by_one(x: Tensor, weights: list[Tensor]) -> Tensor:
    return torch.cat([part @ weight.T for part, weight in zip(x.split(COUNTS.tolist()), weights, strict=True)])


def test_grouped_linear_equals_products_one_by_one_and_so_do_its_gradients() -> None:
    x, weights = inputs()
    leaves = [each.requires_grad_() for each in (x, *weights)]
    out, exact = grouped_linear(x, weights, COUNTS), one_by_one(x, weights)
    torch.testing.assert_close(out, exact)
    found, wanted = (torch.autograd.grad(each.sin().sum(), leaves) for each in (out, exact))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_of_torch_compute_the_same(dtype: torch.dtype) -> None:
    x, weights = inputs(dtype)
    torch.testing.assert_close(kernel_linear(x, weights, COUNTS), grouped_linear(x, weights, COUNTS))
    y = torch.randn(9, 8, dtype=dtype)
    torch.testing.assert_close(kernel_outer(y, x, COUNTS), grouped_outer(y, x, COUNTS))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its tests
def test_operators_are_registered_as_they_should_be() -> None:
    x, weights = inputs(torch.float32)
    weights = [weight.requires_grad_() for weight in weights]
    torch.library.opcheck(grouped_linear, (x.requires_grad_(), weights, COUNTS))
    torch.library.opcheck(grouped_outer, (torch.randn(9, 8), x.detach(), COUNTS))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_order_sorts_by_expert_and_back(k: int) -> None:
    chosen = torch.randint(5, (7, k))
    order = Order.of(chosen, experts=5)
    assert order.counts.tolist() == torch.bincount(chosen.flatten(), minlength=5).tolist()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    rows = order.sorted(x, k)
    assert (chosen.flatten()[order.choices].diff() >= 0).all()
    torch.testing.assert_close(order.unsorted(rows), x.repeat_interleave(k, dim=0))
    direction = torch.randn_like(rows)
    (found,) = torch.autograd.grad((rows * direction).sum(), x)
    (wanted,) = torch.autograd.grad((x[order.choices // k] * direction).sum(), x)
    torch.testing.assert_close(found, wanted)
