"""The parts in models: with a Liger Kernel of plain torch, without any, and with the real one on a CUDA device."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transom
from torch import nn
from transom import BuildContext, TransformerConfig
from transom.slots.activation import ActivationRequest
from transom.slots.loss import LossRequest
from transom.slots.rotary import RotaryRequest
from transom.training.run import train
from transom.transformer.activation import TorchActivation
from transom.transformer.loss import CrossEntropy
from transom.transformer.norm import TorchNorm
from transom.transformer.rotary import RotaryEmbedding
from transom_liger.activation import LigerActivation
from transom_liger.installation import missing
from transom_liger.loss import LigerCrossEntropy
from transom_liger.norm import LigerNorm
from transom_liger.rotary import LigerRotary

SPEC = Path(__file__).parents[1] / "tiny-liger.yaml"
H = 24


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def config(**changes) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=H, num_attention_heads=2, **changes)


def pairs(device: str, dtype: torch.dtype) -> dict[str, tuple[nn.Module, nn.Module, list[torch.Tensor]]]:
    """Each part, core's, and inputs."""
    context, name = BuildContext(), str(dtype).removeprefix("torch.")

    def floats(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    rms, layer = (config(normalization=kind, params_dtype=name) for kind in ("RMSNorm", "LayerNorm"))
    centred = rms.replace(layernorm_zero_centered_gamma=True)
    gates = [config(activation_func=kind, gated_linear_unit=True) for kind in ("silu", "gelu_tanh")]
    turns = RotaryRequest(context=context, head_size=8, rotary_dim=8)
    losses = LossRequest(context=context, vocab_size=40, z_loss=1e-3, softcap=20.0)
    labels = torch.randint(40, (2, 5), device=device).index_fill_(1, torch.tensor([3], device=device), -100)
    found = {
        "rms_norm": (LigerNorm(rms, H, 1e-5), TorchNorm(rms, H, 1e-5), [floats(2, 5, H)]),
        "zero-centred": (LigerNorm(centred, H, 1e-5), TorchNorm(centred, H, 1e-5), [floats(2, 5, H)]),
        "layer_norm": (LigerNorm(layer, H, 1e-5), TorchNorm(layer, H, 1e-5), [floats(2, 5, H)]),
        "rotary": (
            LigerRotary(rms, request=turns),
            RotaryEmbedding(rms, request=turns),
            [floats(2, 5, 4, 8), floats(2, 5, 2, 8)],
        ),
        "loss": (
            LigerCrossEntropy(rms, request=losses),
            CrossEntropy(rms, request=losses),
            [floats(2, 5, H), floats(40, H), labels],
        ),
    }
    for gated in gates:
        found[gated.activation_func] = (
            LigerActivation(config=gated),
            TorchActivation(config=gated),
            [floats(2, 5, 2 * H)],
        )
    return {key: (a.to(device), b.to(device), inputs) for key, (a, b, inputs) in found.items()}


NAMES = ["rms_norm", "zero-centred", "layer_norm", "rotary", "loss", "silu", "gelu_tanh"]


def compared(name: str, device: str, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs, inputs = pairs(device, dtype)[name]
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        with torch.no_grad():
            parameter.copy_(other.add_(torch.randn_like(other) * 0.3))
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    seen = []
    for module in (ours, theirs):
        out = module(*inputs)
        outs = out if isinstance(out, tuple) else (out,)
        total = sum(
            (each.float() * torch.linspace(0.5, 1.5, each.numel(), device=device).view_as(each)).sum() for each in outs
        )
        seen.append([*outs, *torch.autograd.grad(total, [*leaves, *module.parameters()])])
    for found, wanted in zip(*seen, strict=True):
        assert found.dtype == wanted.dtype
        largest = float(wanted.detach().abs().max())
        torch.testing.assert_close(found, wanted, atol=tolerance * max(1.0, largest), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_part_equals_that_of_core_but_for_its_kernel(name, liger):
    compared(name, "cpu", torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_part_equals_that_of_core_on_cuda(name, dtype):
    if not torch.cuda.is_available():
        pytest.skip(f"{name}: torch finds no CUDA device here")
    operators = ("rms_norm", "layer_norm", "rope", "swiglu", "geglu", "fused_linear_cross_entropy")
    reason = next((said for each in operators if (said := missing(each))), None)
    if reason:
        pytest.skip(f"{name}: {reason}")
    compared(name, "cuda", dtype, 1e-4 if dtype is torch.float32 else 0.03)


def test_rotary_keeps_its_frequencies_through_casts_and_devices():
    request = RotaryRequest(context=BuildContext(), head_size=8, rotary_dim=8)
    rotary = LigerRotary(config(), request=request)
    exact = rotary.frequencies.clone()
    assert torch.equal(rotary.to(torch.bfloat16).frequencies, exact)
    on_meta = LigerRotary(config(), request=request).to("meta")
    assert torch.equal(on_meta.to_empty(device="cpu").frequencies, exact)


def test_rotary_leaves_its_inputs_as_they_are(liger):
    rotary = LigerRotary(config(), request=RotaryRequest(context=BuildContext(), head_size=8, rotary_dim=8))
    query, key = torch.randn(1, 3, 2, 8), torch.randn(1, 3, 2, 8)
    before = query.clone(), key.clone()
    rotary(query, key, torch.tensor([[4, 5, 6]]))
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


def test_activation_without_a_gate_is_refused():
    request = ActivationRequest(context=BuildContext(), features=frozenset({"silu"}), function="silu", gated=False)
    assert next(iter(LigerActivation.supports(request))).startswith("its kernels are of gated linear units")


def test_spec_is_tiny_llama_whose_parts_fall_through_here():
    ours, theirs = transom.load_spec(SPEC), transom.load_spec("tiny-llama")
    assert ours.config == theirs.config.replace(use_te_activation_func=True)
    plan = transom.plan(ours)
    asked = {node.slot: node.resolution.chosen.name for node in plan.nodes() if node.slot in ours.use}
    assert asked == {
        "norm": "torch_norm",
        "rotary": "torch_rotary",
        "activation": "torch_activation",
        "loss": "cross_entropy",
    }


def test_a_smaller_model_of_the_spec_learns(tmp_path):
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 40, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    assert train(data, out=tmp_path / "run").validation_loss < 0.65 * math.log(256)
