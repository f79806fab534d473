from __future__ import annotations

import pytest
import torch
from transom.transformer.bias_dropout_add import BiasDropoutAdd


@pytest.fixture
def add(make_config):
    return BiasDropoutAdd(make_config())


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_bias_dropout_add_adds_when_nothing_is_dropped(add, p, training):
    x, bias, residual = torch.randn(2, 3, 4), torch.randn(4), torch.randn(2, 3, 4)
    assert torch.equal(add(x, bias, residual, p, training), residual + (x + bias))
    assert torch.equal(add(x, None, residual, p, training), residual + x)


def test_bias_dropout_add_drops_and_scales_bias_and_input_alike(add):
    torch.manual_seed(0)
    n, p = 40_000, 0.3
    out = add(torch.full((n,), 2.0), torch.ones(n), torch.full((n,), 10.0), p, True)
    dropped, kept = 10.0, 10.0 + 3.0 / (1 - p)
    is_dropped = out == dropped
    torch.testing.assert_close(out[~is_dropped], torch.full_like(out[~is_dropped], kept))
    sigma = (p * (1 - p) / n) ** 0.5
    assert is_dropped.double().mean().item() == pytest.approx(p, abs=5 * sigma)


@pytest.mark.parametrize(
    ("branch", "stream"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
def test_bias_dropout_add_keeps_the_dtype_of_the_residual(add, branch, stream):
    x, residual = torch.randn(2, 4, dtype=branch), torch.randn(2, 4, dtype=stream)
    out = add(x, None, residual, 0.0, True)
    assert out.dtype == stream
    assert torch.equal(out, residual + x.to(stream))


def test_bias_dropout_add_passes_gradients(add):
    x, bias, residual = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (3,), (2, 3))
    )
    assert torch.autograd.gradcheck(lambda *tensors: add(*tensors, 0.0, True), (x, bias, residual))


def test_bias_dropout_add_compiles(add):
    x, bias, residual = torch.randn(2, 4), torch.randn(4), torch.randn(2, 4)
    compiled = torch.compile(add, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias, residual, 0.0, True), add(x, bias, residual, 0.0, True))
