"""What is said of every state of Transformer Engine that can occur, each made on disk."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transom
from transom import BuildContext
from transom.errors import SpecError
from transom.registry.policy import Policy
from transom.registry.registry import default_registry
from transom.registry.verdict import judge
from transom.slots import SLOTS
from transom.testing.requests import plain_request
from transom.testing.subject import config_for

H100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0))
NAMES = {
    "column_linear": "te_linear",
    "row_linear": "te_linear",
    "norm": "te_norm",
    "norm_linear": "te_layernorm_linear",
    "activation": "te_activation",
    "core_attention": "te_attention",
    "mlp": "te_layernorm_mlp",
}
FEATURES = {
    "norm": {"layernorm"},
    "norm_linear": {"rmsnorm"},
    "activation": {"gelu_tanh"},
    "core_attention": {"causal"},
}
INSTALL = "pip install --no-build-isolation 'transom-te-linear[te]'"
EACH = pytest.mark.parametrize("slot", list(NAMES))


def verdict(slot: str, context: BuildContext = H100, **config):
    request = plain_request(slot, context, frozenset(FEATURES.get(slot, ())))
    if slot == "mlp":
        settings = config_for(params_dtype=context.dtype, **({"activation_func": "gelu_tanh"} | config))
        request = replace(request, config=settings)
    found = judge(default_registry().get(slot, f"transom-te-linear/{NAMES[slot]}"), SLOTS[slot], request, Policy())
    return found.stage, found.reason, found.hint


@EACH
def test_verdict_when_it_is_absent(slot, site):
    absent = "which is not installed"
    assert verdict(slot) == (
        "requires",
        f"it requires transformer-engine>=2.20, {absent}, and transformer-engine-torch>=2.20, {absent}, and "
        f"transformer-engine-cu13>=2.20, {absent}, or transformer-engine-cu12>=2.20, {absent}",
        INSTALL,
    )


@EACH
def test_verdict_when_only_the_empty_package_is_installed(slot, install):
    install("transformer_engine", code="raise RuntimeError('Found empty `transformer-engine` meta package installed')")
    stage, reason, hint = verdict(slot)
    assert (stage, hint) == ("requires", INSTALL)
    assert reason.startswith("it requires transformer-engine-torch>=2.20, which is not installed")


@EACH
def test_verdict_when_it_is_too_old(slot, install):
    install(version="1.13.0")
    stage, reason, _ = verdict(slot)
    assert stage == "requires"
    assert "transformer-engine>=2.20, but 1.13.0 is installed" in reason


@EACH
@pytest.mark.parametrize(
    "raised",
    ["RuntimeError('Found empty `transformer-engine` meta package installed')", "OSError('libcudnn.so.9: not found')"],
)
def test_verdict_when_it_cannot_be_imported(slot, raised, install):
    install(code=f"raise {raised}")
    stage, reason, _ = verdict(slot)
    kind, _, rest = raised.partition("(")
    assert (stage, reason) == (
        "supports",
        f"transformer_engine.pytorch cannot be imported: {kind}: {rest[1:-2]}; install it anew for the torch and the "
        f"CUDA that are here",
    )


@EACH
def test_verdict_when_importing_it_warns(slot, install):
    install(code="import warnings; warnings.warn('old', DeprecationWarning)")
    assert verdict(slot) == ("ok", "", None)


@EACH
@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (BuildContext(dtype="bfloat16"), "it runs on cuda, not on cpu"),
        (
            BuildContext(device="cuda", dtype="bfloat16"),
            "it needs compute capability 8.0, and which device it is for is not known",
        ),
        (
            BuildContext(device="cuda", dtype="bfloat16", compute_capability=(7, 5)),
            "it needs compute capability 8.0, this device has 7.5",
        ),
    ],
    ids=["no device", "no driver", "an old device"],
)
def test_verdict_when_the_hardware_does_not_do(slot, context, reason, install):
    install()
    assert verdict(slot, context)[:2] == ("hardware", reason)


@pytest.mark.parametrize("slot", ["column_linear", "row_linear", "norm_linear", "mlp"])
def test_verdict_when_matrices_would_be_rounded(slot, install):
    install()
    said = "it computes in bfloat16, float16, not in float32"
    assert verdict(slot, replace(H100, dtype="float32"))[:2] == ("features", said)


@EACH
def test_verdict_when_all_is_there(slot, install):
    install()
    assert verdict(slot) == ("ok", "", None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"delay_wgrad_compute": True}, "it does not put weight gradients off"),
        ({"activation_func": "gelu"}, "it knows gelu_tanh, silu, relu, squared_relu, quick_gelu, not gelu"),
        ({"gated_linear_unit": True, "activation_func_clamp_value": 7.0}, "it neither clamps nor shifts"),
        ({"ffn_dropout": 0.1}, "it drops nothing inside"),
    ],
)
def test_verdict_says_what_the_fused_mlp_cannot(config, said, install):
    install()
    assert verdict("mlp", **config)[:2] == ("supports", said)


def judged(slot: str, **changes):
    settings = config_for(params_dtype="bfloat16", activation_func="relu")
    request = replace(plain_request(slot, H100, frozenset(FEATURES.get(slot, ()))), **changes)
    request = replace(request, config=settings) if slot == "mlp" else request
    found = judge(default_registry().get(slot, NAMES[slot]), SLOTS[slot], request, Policy())
    return found.stage, found.reason


def test_verdict_refuses_an_expert_and_an_mlp_without_a_norm_before_it(install):
    install()
    assert judged("mlp", is_expert=True) == ("supports", "it is neither an expert nor as wide as another input")
    assert judged("mlp", after_norm=False) == (
        "features", "it brings a norm along, and none stands before this place that feeds it alone"
    )  # fmt: skip


def test_verdict_refuses_sizes_that_cannot_be_split(install):
    install()
    context = replace(H100, tensor_parallel_size=5)
    said = "ffn_hidden_size 96 does not divide into 1 matrices over 5 ranks each"
    assert judged("mlp", context=context) == ("supports", said)
    said = "output_size 48 does not divide into 1 matrices over 5 ranks each"
    assert judged("norm_linear", context=context) == ("supports", said)


def test_verdict_refuses_sinks_beside_masks_that_are_drawn(install):
    install()
    request = plain_request("core_attention", H100, frozenset({"sink_learnable", "keep"}))
    found = judge(default_registry().get("core_attention", "te_attention"), SLOTS["core_attention"], request, Policy())
    assert found.reason == "sink_learnable beside masks that are drawn (keep) was never tried"


SPEC = {
    "name": "small",
    "vocab_size": 32,
    "max_sequence_length": 16,
    "bundle": "te",
    "config": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "activation_func": "silu"},
}


def test_bundle_falls_through_with_one_line_each(site, caplog):
    spec = SPEC | {"config": SPEC["config"] | {"use_te_activation_func": True}}
    from transom.registry.registry import Registry

    registry = Registry(default_registry().index)
    with caplog.at_level(logging.INFO, "transom"):
        made = transom.plan(spec, registry=registry)
    chosen = {node.slot: node.resolution.chosen.name for node in made.nodes()}
    assert {slot: chosen[slot] for slot in NAMES if slot in chosen} == {
        "column_linear": "parallel_linear",
        "row_linear": "parallel_linear",
        "norm": "torch_norm",
        "activation": "torch_activation",
        "core_attention": "torch_dot_product",
        "mlp": "mlp",
    }
    assert "norm_linear" not in chosen
    passed_over = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(passed_over) == len(NAMES)
    assert all("(requires): it requires transformer-engine>=2.20" in line for line in passed_over)


def test_plan_says_what_is_fused_and_how(install):
    install()
    delayed, current = {"recipe": "delayed"}, {"recipe": "current"}
    options = {"mlp/te_layernorm_mlp": delayed, "norm_linear/te_layernorm_linear": current}
    made = transom.plan(SPEC, device="meta", dtype="bfloat16", options=options)
    nodes = {node.path: node for node in made.nodes()}
    notes = {path: nodes[f"layers.0.{path}"].note for path in ("self_attention.linear_qkv", "mlp")}
    assert notes == {
        "self_attention.linear_qkv": "FP8, current scaling",
        "mlp": "FP8, delayed scaling (max of 1024, margin 0)",
    }
    assert nodes["layers.0.input_layernorm"].within == "layers.0.self_attention.linear_qkv"
    assert nodes["layers.0.pre_mlp_layernorm"].within == "layers.0.mlp"
    assert nodes["final_layernorm"].resolution.chosen.name == "te_norm"


@pytest.mark.parametrize("slot", ["norm_linear", "mlp"])
def test_plan_refuses_a_recipe_that_the_device_does_not_know(slot, install):
    install()
    context = replace(H100, compute_capability=(8, 0))
    request = plain_request(slot, context, frozenset(FEATURES.get(slot, ())))
    builder = default_registry().get(slot, NAMES[slot]).load()
    with pytest.raises(SpecError, match="recipe 'block' needs compute capability") as caught:
        builder.describe(request, builder.Options(recipe="block"))
    assert caught.value.path == "options.recipe"
    assert caught.value.what == "recipe 'block' needs compute capability 9.0, this device has 8.0."


@pytest.mark.parametrize(("cuda", "refused"), [("12.8", True), ("12.9", False), ("13.0", False)])
def test_plan_refuses_a_recipe_that_cuda_does_not_know(cuda, refused, install, monkeypatch):
    install()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    request = plain_request("column_linear", H100)
    builder = default_registry().get("column_linear", "te_linear").load()
    options = builder.Options(recipe="block")
    if not refused:
        assert builder.describe(request, options) == "FP8, block scaling"
        return
    with pytest.raises(SpecError, match="recipe 'block' needs CUDA") as caught:
        builder.describe(request, options)
    assert caught.value.path == "options.recipe"
    assert caught.value.what == f"recipe 'block' needs CUDA 12.9, this torch was built with {cuda}."


def test_importing_the_plugin_imports_no_transformer_engine(install):
    site = install()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import transom_te_linear.linear, transom_te_linear.norm_linear, transom_te_linear.mlp\n"
        "import transom_te_linear.attention, transom_te_linear.activation, transom_te_linear.norm\n"
        "print(*(name for name in sys.modules if name.startswith('transformer_engine')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
