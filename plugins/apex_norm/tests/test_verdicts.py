"""What is said of every state of Apex that can occur, each made on disk, and what importing the plugin imports."""

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
from transom.slots.norm import NormRequest

from .conftest import install_metadata

H100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0))
BUILD = "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 {}pip install --no-build-isolation git+https://github.com/NVIDIA/apex"
REMEDIES = {"apex_norm": BUILD.format(""), "apex_fast_layer_norm": BUILD.format("APEX_FAST_LAYER_NORM=1 ")}
FILES = {"apex_norm": "normalization/fused_layer_norm.py", "apex_fast_layer_norm": "contrib/layer_norm/layer_norm.py"}
EXTENSIONS = {"apex_norm": "fused_layer_norm_cuda", "apex_fast_layer_norm": "fast_layer_norm"}
NAMES = pytest.mark.parametrize("name", list(REMEDIES))


def _verdict(name: str, context: BuildContext = H100, *, hidden_size: int = 1024, feature: str = "layernorm"):
    registry: Registry = default_registry()
    request = NormRequest(context=context, features=frozenset({feature}), hidden_size=hidden_size, eps=1e-5)
    found = judge(registry.get("norm", f"transom-apex-norm/{name}"), SLOTS["norm"], request, Policy())
    return found.stage, found.reason, found.hint


@NAMES
def test_verdict_when_apex_is_absent(name, site):
    assert _verdict(name) == ("requires", "it requires apex!=0.9.*, which is not installed", REMEDIES[name])


@NAMES
def test_verdict_when_the_other_project_called_apex_is_installed(name, site):
    install_metadata(site, "0.9.10.dev0")
    (site / "apex").mkdir()
    (site / "apex" / "__init__.py").write_text("raise ImportError('Pyramid is missing')")
    assert _verdict(name) == ("requires", "it requires apex!=0.9.*, but 0.9.10.dev0 is installed", REMEDIES[name])


@NAMES
def test_verdict_when_there_is_no_cuda_device(name, apex):
    assert _verdict(name, BuildContext()) == (
        "hardware",
        "it runs on cuda, not on cpu",
        "build for cuda on a machine that has it, or name another implementation",
    )


@NAMES
def test_verdict_when_there_is_no_driver(name, apex):
    stage, reason, hint = _verdict(name, BuildContext(device="cuda"))
    assert (stage, reason) == (
        "hardware",
        "it needs compute capability 8.0, and which device it is for is not known",
    )
    assert hint.startswith("plan on a machine whose torch finds a CUDA device")


@NAMES
def test_verdict_when_the_device_is_too_old(name, apex):
    context = BuildContext(device="cuda", compute_capability=(7, 5))
    assert _verdict(name, context)[:2] == ("hardware", "it needs compute capability 8.0, this device has 7.5")


def test_verdict_when_the_dtype_or_the_norm_is_not_declared(apex):
    context = BuildContext(device="cuda", dtype="float64", compute_capability=(9, 0))
    assert _verdict("apex_norm", context)[0] == "features"
    stage, reason, _ = _verdict("apex_fast_layer_norm", feature="rmsnorm")
    assert stage == "features"
    assert "rmsnorm" in reason


@NAMES
def test_verdict_when_the_package_is_gone_and_its_metadata_are_left(name, site):
    install_metadata(site, "0.1")
    assert _verdict(name)[:2] == ("supports", "NVIDIA Apex is not installed: no package apex is on the path")


@NAMES
def test_verdict_when_a_package_of_that_name_has_no_norms(name, site):
    install_metadata(site, "1.0")
    (site / "apex").mkdir()
    (site / "apex" / "__init__.py").write_text("")
    assert _verdict(name)[:2] == (
        "supports",
        f"the package apex that is installed has no {FILES[name]}: it is another project of that name; remove it, and "
        f"build https://github.com/NVIDIA/apex",
    )


@pytest.mark.parametrize(
    ("name", "lacks"), [("apex_norm", "torch.library.custom_op"), ("apex_fast_layer_norm", "memory_efficient")]
)
def test_verdict_when_apex_is_too_old(name, lacks, apex):
    (apex / "apex" / FILES[name]).write_text("class FusedLayerNorm: ...")
    assert _verdict(name)[:2] == (
        "supports",
        f"NVIDIA Apex is too old: its {FILES[name]} does not know {lacks}; build a newer one",
    )


@pytest.mark.parametrize(
    ("name", "flag"), [("apex_norm", "APEX_CUDA_EXT=1"), ("apex_fast_layer_norm", "APEX_FAST_LAYER_NORM=1")]
)
def test_verdict_when_the_extension_was_not_built(name, flag, apex):
    (apex / f"{EXTENSIONS[name]}.py").unlink()
    assert _verdict(name)[:2] == (
        "supports",
        f"NVIDIA Apex was built without its extension {EXTENSIONS[name]}: build it again with {flag}",
    )


@NAMES
def test_verdict_when_the_extension_was_built_for_another_torch(name, apex):
    (apex / f"{EXTENSIONS[name]}.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2E')")
    assert _verdict(name)[:2] == (
        "supports",
        f"NVIDIA Apex's extension {EXTENSIONS[name]} cannot be loaded: ImportError: undefined symbol: "
        f"_ZN3c105ErrorC2E; build it again with the torch that is installed",
    )


@NAMES
def test_verdict_when_importing_the_extension_warns(name, apex):
    (apex / f"{EXTENSIONS[name]}.py").write_text("import warnings; warnings.warn('old', DeprecationWarning)")
    assert _verdict(name) == ("ok", "", None)


def test_verdict_when_there_is_no_kernel_for_the_width(apex):
    stage, reason, _ = _verdict("apex_fast_layer_norm", hidden_size=1000)
    assert (stage, reason) == (
        "supports",
        "it has no kernel for a width of 1000, only for 1024 to 65536 in 24 steps (transom_apex_norm.fast.WIDTHS)",
    )


@NAMES
def test_verdict_when_all_is_there(name, apex):
    assert _verdict(name) == ("ok", "", None)


def test_chain_falls_through_to_the_reference_with_one_line_each(site, caplog):
    request = NormRequest(context=BuildContext(), features=frozenset({"layernorm"}), hidden_size=8, eps=1e-5)
    registry = Registry(default_registry().index)
    with caplog.at_level(logging.INFO, "transom"):
        for _ in range(3):
            chain = "apex_fast_layer_norm | apex_norm | torch_norm"
            assert resolve("norm", chain, request, registry=registry).chosen.name == "torch_norm"
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "norm transom-apex-norm/apex_fast_layer_norm is passed over",
        "norm transom-apex-norm/apex_norm is passed over",
    ]


def test_importing_the_plugin_imports_nothing_of_apex(apex):
    code = (
        "import sys; import transom_apex_norm.norm, transom_apex_norm.fast, transom_apex_norm.kernels\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('apex', 'fused_layer_norm_cuda')))"
    )
    path = f"import sys; sys.path.insert(0, {str(apex)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    shutil.rmtree(apex / "apex")
