from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.testing import ConformanceError
from transom.testing.architectures.properties import (
    expect_depends,
    expect_finite,
    expect_gradients,
    expect_same,
    expect_shape,
)


def test_expect_shape_accepts_what_was_asked_for():
    expect_shape(torch.ones(2, 3), (2, 3), torch.float32)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.ones(3, 2), r"^the output has shape \[3, 2\], expected \[2, 3\]$"),
        (torch.ones(2, 3).double(), r"^the output is torch\.float64, expected torch\.float32$"),
        (torch.full((2, 3), torch.nan), r"^the output is not finite$"),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_expect_shape_refuses_the_rest(output, said):
    with pytest.raises(ConformanceError, match=said):
        expect_shape(output, (2, 3), torch.float32)


def test_expect_finite_refuses_infinities():
    with pytest.raises(ConformanceError, match=r"^x is not finite$"):
        expect_finite(torch.tensor([1.0, -torch.inf]), "x")


def test_expect_same_allows_another_order_of_sums():
    reference = torch.tensor([1.0])
    expect_same(reference + 1e-5, reference, "float32", "x")
    with pytest.raises(ConformanceError, match=r"^x: "):
        expect_same(reference + 1e-2, reference, "float32", "x")


def test_expect_depends_refuses_a_single_token_that_stayed():
    before = torch.zeros(2, 3, 4)
    expect_depends(before + 1, before, "x")
    after = before + 1
    after[1, 2] = 0
    with pytest.raises(ConformanceError, match=r"^the output does not depend on x$"):
        expect_depends(after, before, "x")


def test_expect_gradients_names_what_no_gradient_reaches():
    module, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    module(x).sum().backward()
    expect_gradients(module, {"x": x})
    module.bias.grad = None
    x.grad.zero_()
    with pytest.raises(ConformanceError, match=r"^no gradient reaches bias, x$"):
        expect_gradients(module, {"x": x})


def test_expect_gradients_refuses_what_is_not_finite():
    module = nn.Linear(2, 2, bias=False)
    (module(torch.ones(1, 2)) * torch.inf).sum().backward()
    with pytest.raises(ConformanceError, match=r"^the gradient of weight is not finite$"):
        expect_gradients(module, {})
