"""What is said of every state of Liger Kernel, each made on disk, and what importing the plugin imports."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import pytest
from transom import BuildContext
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.resolve import resolve
from transom.registry.verdict import judge
from transom.slots import SLOTS
from transom.slots.activation import ActivationRequest
from transom.slots.loss import LossRequest
from transom.slots.norm import NormRequest
from transom.slots.rotary import RotaryRequest

from .conftest import install_metadata

H100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0))
REMEDY = "pip install 'transom-liger[liger]'"
PARTS = {
    "norm": ("liger_norm", "rms_norm"),
    "rotary": ("liger_rotary", "rope"),
    "activation": ("liger_activation", "swiglu"),
    "loss": ("liger_cross_entropy", "fused_linear_cross_entropy"),
}
SLOT = pytest.mark.parametrize("slot", list(PARTS))


def _request(slot: str, context: BuildContext, *features: str):
    if slot == "norm":
        return NormRequest(context=context, features=frozenset(features or {"rmsnorm"}), hidden_size=64, eps=1e-5)
    if slot == "rotary":
        return RotaryRequest(context=context, features=frozenset(features or {"half_split"}), head_size=8, rotary_dim=8)
    if slot == "activation":
        gated = "gated" in features or not features
        found = frozenset(features or {"silu", "gated"})
        return ActivationRequest(context=context, features=found, function="silu", gated=gated)
    return LossRequest(context=context, features=frozenset(features), vocab_size=64)


def _verdict(slot: str, context: BuildContext = H100, *features: str):
    registry: Registry = default_registry()
    chosen = registry.get(slot, f"transom-liger/{PARTS[slot][0]}")
    found = judge(chosen, SLOTS[slot], _request(slot, context, *features), Policy())
    return found.stage, found.reason, found.hint


@SLOT
def test_verdict_when_liger_kernel_is_absent(slot, site):
    install_metadata(site, "triton", "3.6.0")
    assert _verdict(slot) == ("requires", "it requires liger-kernel>=0.8.5, which is not installed", REMEDY)


@SLOT
def test_verdict_when_liger_kernel_is_too_old(slot, site):
    install_metadata(site, "triton", "3.6.0")
    install_metadata(site, "liger-kernel", "0.7.0")
    assert _verdict(slot) == ("requires", "it requires liger-kernel>=0.8.5, but 0.7.0 is installed", REMEDY)


@SLOT
def test_verdict_when_triton_is_absent(slot, site):
    install_metadata(site, "liger-kernel", "0.8.5")
    assert _verdict(slot) == ("requires", "it requires triton>=2.3.1, which is not installed", REMEDY)


@SLOT
def test_verdict_when_there_is_no_cuda_device(slot, liger):
    assert _verdict(slot, BuildContext())[:2] == ("hardware", "it runs on cuda, not on cpu")


@SLOT
def test_verdict_when_the_device_is_too_old(slot, liger):
    context = BuildContext(device="cuda", compute_capability=(7, 5))
    assert _verdict(slot, context)[:2] == ("hardware", "it needs compute capability 8.0, this device has 7.5")


@SLOT
def test_verdict_when_loading_the_kernels_warns(slot, liger):
    operator = liger / "liger_kernel" / "ops" / f"{PARTS[slot][1]}.py"
    operator.write_text("import warnings; warnings.warn('old', DeprecationWarning)")
    assert _verdict(slot)[:2] == ("ok", "")


@SLOT
def test_verdict_when_the_kernels_do_not_load(slot, liger):
    operator = PARTS[slot][1]
    (liger / "liger_kernel" / "ops" / f"{operator}.py").write_text("raise RuntimeError('0 active drivers')")
    said = f"Liger Kernel's {operator} cannot be loaded: RuntimeError: 0 active drivers"
    assert _verdict(slot)[:2] == ("supports", said)


@pytest.mark.parametrize(
    ("slot", "feature"),
    [("rotary", "interleaved"), ("rotary", "yarn"), ("activation", "relu"), ("loss", "tensor_parallel")],
)
def test_verdict_when_there_is_no_kernel_for_it(slot, feature, liger):
    stage, reason, _ = _verdict(slot, H100, feature)
    assert stage == "features"
    assert feature in reason


def test_verdict_when_the_activation_has_no_gate(liger):
    assert _verdict("activation", H100, "silu")[:2] == (
        "supports",
        "its kernels are of gated linear units, and gated_linear_unit is False",
    )


@SLOT
def test_verdict_when_the_model_is_compiled(slot, liger):
    context = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0), compile=True)
    assert _verdict(slot, context)[0] == "features"


@SLOT
def test_verdict_when_all_is_there(slot, liger):
    assert _verdict(slot) == ("ok", "", None)


def test_chain_falls_through_to_the_reference_with_one_line(site, caplog):
    registry = Registry(default_registry().index)
    with caplog.at_level(logging.INFO, "transom"):
        for _ in range(3):
            chosen = resolve("norm", "liger_norm | torch_norm", _request("norm", BuildContext()), registry=registry)
            assert chosen.chosen.name == "torch_norm"
    said = [record.getMessage().split(" (")[0] for record in caplog.records]
    assert said == ["norm transom-liger/liger_norm is passed over"]


def test_importing_the_plugin_imports_nothing_of_liger_kernel(liger):
    modules = ", ".join(f"transom_liger.{each}" for each in ("norm", "rotary", "activation", "loss", "kernels"))
    code = (
        f"import sys; sys.path.insert(0, {str(liger)!r}); import {modules}\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('liger_kernel', 'triton')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    shutil.rmtree(liger / "liger_kernel")
