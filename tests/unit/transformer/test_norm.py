from __future__ import annotations

import pytest
import torch
from transom.transformer.norm import TorchNorm

KINDS = ["LayerNorm", "RMSNorm"]


def _formula(kind, x, weight, bias, eps):
    x, weight = x.double(), weight.double()
    if kind == "LayerNorm":
        centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
        variance = (centred * centred).sum(-1, keepdim=True) / x.shape[-1]
        return centred / (variance + eps).sqrt() * weight + bias.double()
    return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt() * weight


def _randomise(norm):
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


@pytest.fixture
def make_norm(make_config):
    def make(kind, *, dtype="float64", zero_centered=False, eps=1e-3):
        config = make_config(normalization=kind, params_dtype=dtype, layernorm_zero_centered_gamma=zero_centered)
        return TorchNorm(config, hidden_size=6, eps=eps)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_norm_computes_its_formula(make_norm, kind):
    norm, x = _randomise(make_norm(kind)), torch.randn(2, 3, 6, dtype=torch.float64) + 1
    torch.testing.assert_close(norm(x), _formula(kind, x, norm.weight, norm.bias, 1e-3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_centered_norm_adds_one_to_the_weight(make_norm, kind):
    norm, x = _randomise(make_norm(kind, zero_centered=True)), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(x), _formula(kind, x, norm.weight + 1, norm.bias, 1e-3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_norm_starts_as_the_mere_normalisation(make_norm, kind, zero_centered):
    norm, x = make_norm(kind, zero_centered=zero_centered), torch.randn(4, 6, dtype=torch.float64)
    ones, zeros = torch.ones(6), torch.zeros(6)
    torch.testing.assert_close(norm(x), _formula(kind, x, ones, zeros, 1e-3), rtol=1e-12, atol=1e-12)
    _randomise(norm).reset_parameters()
    torch.testing.assert_close(norm(x), _formula(kind, x, ones, zeros, 1e-3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "names"), [("LayerNorm", {"weight", "bias"}), ("RMSNorm", {"weight"})])
def test_norm_has_parameters_by_kind(make_norm, kind, names):
    assert set(make_norm(kind).state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_centered", [False, True])
def test_norm_in_bfloat16_rounds_only_the_result(make_norm, kind, zero_centered):
    norm = _randomise(make_norm(kind, dtype="bfloat16", zero_centered=zero_centered))
    x = (100 * torch.randn(64, 6) + 300).bfloat16()
    scale = norm.weight.double() + (1 if zero_centered else 0)
    exact = _formula(kind, x, scale, norm.bias, 1e-3)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    # half a unit of bfloat16's 8 bits, plus float32's own error, which the subtraction of means of 300 magnifies
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("stream", "weights"),
    [(torch.float32, "bfloat16"), (torch.bfloat16, "float32"), (torch.float64, "float32")],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_norm_keeps_the_dtype_of_its_input(make_norm, kind, stream, weights):
    norm, x = _randomise(make_norm(kind, dtype=weights)), torch.randn(5, 6).to(stream)
    out = norm(x)
    assert out.dtype == stream
    tolerance = 2**-8 if stream == torch.bfloat16 else 1e-5
    exact = _formula(kind, x, norm.weight, norm.bias, 1e-3)
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_norm_gradients_are_right(make_norm, kind, zero_centered):
    norm = _randomise(make_norm(kind, zero_centered=zero_centered))
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_norm_is_made_on_the_meta_device_and_filled_later(make_norm, kind):
    with torch.device("meta"):
        norm = make_norm(kind)
    assert norm.weight.is_meta
    norm.to_empty(device="cpu").reset_parameters()
    assert norm.weight.tolist() == [1.0] * 6


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_norm_compiles(make_norm, kind, zero_centered):
    norm, x = make_norm(kind, dtype="bfloat16", zero_centered=zero_centered), torch.randn(2, 6).bfloat16()
    assert torch.equal(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))


def test_norm_shows_what_it_is(make_norm):
    assert repr(make_norm("RMSNorm")) == "TorchNorm(RMSNorm, 6, eps=0.001)"
    assert repr(make_norm("LayerNorm")) == "TorchNorm(LayerNorm, 6, eps=0.001)"
