"""What the norms compute, with an Apex of plain torch in place of the kernels, and what they ask of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transom import TransformerConfig
from transom_apex_norm import kernels
from transom_apex_norm.fast import ApexFastLayerNorm
from transom_apex_norm.norm import ApexNorm
from transom_apex_norm.options import ApexOptions

HALVES = [torch.bfloat16, torch.float16]
H = 1024


def config(normalization: str = "LayerNorm", dtype: str = "float32", **fields: object) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1, hidden_size=H, num_attention_heads=4, normalization=normalization, params_dtype=dtype, **fields
    )


def expected(x: Tensor, module: torch.nn.Module, *, zero_centered: bool, eps: float) -> Tensor:
    """The definition, in float64."""
    wide = x.double()
    weight = module.weight.double() + (1.0 if zero_centered else 0.0)
    if module.bias is None:
        return F.rms_norm(wide, (x.shape[-1],), weight, eps)
    return F.layer_norm(wide, (x.shape[-1],), weight, module.bias.double(), eps)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter) - 0.5)
    return module


@pytest.fixture(autouse=True)
def _seeded(apex) -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("zero_centered", [False, True], ids=["gamma", "zero_centered_gamma"])
@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "fast"])
def test_norm_agrees_and_keeps_the_inputs_dtype_whatever_the_parameters_have(kind, given, params, zero_centered):
    made = ApexFastLayerNorm if kind == "fast" else ApexNorm
    normalization = "LayerNorm" if kind == "fast" else kind
    settings = config(normalization, params, layernorm_zero_centered_gamma=zero_centered)
    module = shaken(made(settings, hidden_size=H, eps=1e-3))
    x = (torch.randn(2, 3, H) * 0.1).to(given).requires_grad_()
    out = module(x)
    assert out.dtype is given
    wanted = expected(x, module, zero_centered=zero_centered, eps=1e-3)
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[given]
    if kind == "fast" and params == "bfloat16" and given is torch.float16 and not zero_centered:
        tolerance = 2e-2
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
    out.float().square().sum().backward()
    assert x.grad.dtype is given
    assert all(p.grad is not None and p.grad.dtype is p.dtype for p in module.parameters())


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_norm_compiles_in_one_graph_when_dtypes_differ(kind, given):
    module = shaken(ApexNorm(config(kind), hidden_size=H, eps=1e-5))
    x = torch.randn(3, H).to(given)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize(
    ("given", "params", "function"),
    [
        (torch.bfloat16, "bfloat16", "fused"),
        (torch.float32, "float32", "fused"),
        (torch.bfloat16, "float32", "mixed"),
        (torch.float32, "bfloat16", "fused"),
    ],
)
def test_norm_asks_for_the_kernel_of_its_dtypes(kind, given, params, function, monkeypatch):
    asked = []
    names = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}
    for name, of in (("fused", ""), ("mixed", "mixed_")):
        monkeypatch.setattr(kernels, f"{of}{names[kind]}", lambda x, *_, n=name, **o: asked.append((n, o)) or x)
    module = ApexNorm(config(kind, params), hidden_size=H, eps=1e-5, options=ApexOptions(memory_efficient=True))
    module(torch.randn(3, H).to(given))
    assert asked == [(function, {"memory_efficient": True})]


def test_fast_norm_passes_its_options_on(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "fast_layer_norm", lambda x, *_, **o: asked.append(o) or x)
    options = ApexOptions(memory_efficient=True)
    ApexFastLayerNorm(config(), hidden_size=H, eps=1e-5, options=options)(torch.randn(3, H))
    assert asked == [{"memory_efficient": True}]


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_norm_has_the_state_of_the_reference(kind):
    from transom.transformer.norm import TorchNorm

    ours, theirs = (made(config(kind), hidden_size=H, eps=1e-5).state_dict() for made in (ApexNorm, TorchNorm))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}


@pytest.mark.parametrize("made", [ApexNorm, ApexFastLayerNorm])
def test_norm_is_made_on_meta_and_gives_shapes_of_fake_tensors(made):
    with torch.device("meta"):
        module = made(config(dtype="bfloat16"), hidden_size=H, eps=1e-5)
    assert all(parameter.is_meta for parameter in module.parameters())
    with FakeTensorMode():
        module = made(config(dtype="bfloat16"), hidden_size=H, eps=1e-5)
        out = module(torch.empty(2, 3, H, dtype=torch.bfloat16))
    assert (out.shape, out.dtype) == ((2, 3, H), torch.bfloat16)


def test_norm_says_what_it_is():
    options = ApexOptions(memory_efficient=True)
    assert str(ApexNorm(config(), hidden_size=H, eps=1e-5, options=options)) == (
        "ApexNorm(LayerNorm, 1024, eps=1e-05, memory_efficient)"
    )
    assert str(ApexFastLayerNorm(config(), hidden_size=H, eps=1e-5, options=options)) == (
        "ApexFastLayerNorm(1024, eps=1e-05, memory_efficient)"
    )
