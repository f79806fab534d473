from __future__ import annotations

import torch
from transom.transformer.delayed_wgrad import DelayedLinear


def test_delayed_linear_gradients_of_input_and_bias_are_right():
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (5, 4), (5,))
    )
    linear = DelayedLinear()
    assert torch.autograd.gradcheck(lambda x, bias: linear(x, weight, bias), (x, bias))


def test_delayed_linear_holds_no_graph_of_what_waits():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    linear = DelayedLinear()
    linear(x * 2, weight, None).sum().backward()
    assert all(not tensor.requires_grad for pair in linear._put_off for tensor in pair)
    linear.add_gradient_to(weight)
    assert linear._put_off == []
    torch.testing.assert_close(weight.grad, (2 * x.detach()).sum(0).expand(5, 4))
