"""What is said of every state of FlashAttention that can occur, each made on disk, and which version serves."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import transom
from transom import BuildContext
from transom.errors import SpecError
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.resolve import resolve
from transom.registry.verdict import judge
from transom.slots import SLOTS
from transom.slots.core_attention import CoreAttentionRequest
from transom_flash_attention.versions import choose, objections

H100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0))
A100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(8, 0))
INSTALL = "pip install 'transom-flash-attention[fa4]', or [fa2], which compiles for hours, or [fa3], for inference"
REF = "transom-flash-attention/flash_attention"


def request_of(context: BuildContext = H100, features: str = "causal", **fields) -> CoreAttentionRequest:
    sizes = {"num_attention_heads": 8, "num_query_groups": 8, "head_size": 64, "value_head_size": 64}
    return CoreAttentionRequest(context=context, features=frozenset(features.split()), **(sizes | fields))


def verdict(context: BuildContext = H100, features: str = "causal", **fields):
    request = request_of(context, features, **fields)
    found = judge(default_registry().get("core_attention", REF), SLOTS["core_attention"], request, Policy())
    return found.stage, found.reason, found.hint


def test_verdict_when_nothing_is_installed(site):
    absent = "which is not installed"
    reason = f"it requires flash-attn-4>=4.0.0b36, {absent}, or fa3-fwd>=0.0.3, {absent}, or flash-attn>=2.8, {absent}"
    assert verdict() == ("requires", reason, INSTALL)


@pytest.mark.parametrize(
    ("number", "version", "said"),
    [
        (2, "2.5.8", "flash-attn>=2.8, but 2.5.8 is installed"),
        (4, "4.0.0b8", "flash-attn-4>=4.0.0b36, but 4.0.0b8 is installed"),
    ],
)
def test_verdict_when_what_is_installed_is_too_old(number, version, said, install):
    install(number, version=version, code=False)
    stage, reason, hint = verdict()
    assert (stage, hint) == ("requires", INSTALL)
    assert said in reason


def test_verdict_when_one_is_too_old_and_another_serves(install):
    install(4, version="4.0.0b8", code=False)
    install(2)
    assert verdict() == ("ok", "", None)


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (BuildContext(dtype="bfloat16"), "it runs on cuda, not on cpu"),
        (
            BuildContext(device="cuda", dtype="bfloat16"),
            "it needs compute capability 8.0, and which device it is for is not known",
        ),
        (replace(H100, compute_capability=(7, 5)), "it needs compute capability 8.0, this device has 7.5"),
    ],
    ids=["no device", "no driver", "an old device"],
)
def test_verdict_when_the_hardware_does_not_do(context, reason, install):
    install(2)
    assert verdict(context)[:2] == ("hardware", reason)


@pytest.mark.parametrize(
    ("context", "features", "reason"),
    [
        (replace(H100, dtype="float32"), "causal", "it computes in bfloat16, float16, not in float32"),
        (H100, "padding", "its card does not declare padding (keys that are padding are hidden)"),
    ],
)
def test_verdict_when_the_card_does_not_declare_it(context, features, reason, install):
    install(2)
    assert verdict(context, features)[:2] == ("features", reason)


NOT_4 = "FlashAttention 4: flash-attn-4 is not installed"
NOT_3 = "FlashAttention 3: fa3-fwd is not installed"
NOT_2 = "FlashAttention 2: flash-attn is not installed"


@pytest.mark.parametrize(
    ("version", "context", "features", "fields", "said"),
    [
        (4, A100, "causal", {}, "it was tried for compute capability 9.x alone, this device has 8.0"),
        (4, H100, "dropout", {}, "it has no dropout"),
        (4, H100, "alibi", {}, "it has no ALiBi"),
        (4, H100, "causal", {"head_size": 260}, "head_size is 260; it takes multiples of 8 up to 256"),
        (4, H100, "causal", {"value_head_size": 4}, "value_head_size is 4; it takes multiples of 8 up to 256"),
        (
            4,
            H100,
            "causal",
            {"value_head_size": 32},
            "its backward pass takes values of a smaller head size than keys in multiples of 64 alone",
        ),
        (
            4,
            H100,
            "gqa value_head_size",
            {"num_query_groups": 2, "value_head_size": 128},
            "its backward pass takes no grouped heads whose values have another size",
        ),
        (3, H100, "causal", {}, "fa3-fwd has no backward pass"),
        (3, replace(H100, mode="infer", dtype="float16"), "causal", {}, "fa3-fwd was built without float16"),
        (3, replace(H100, mode="infer"), "causal", {"window": (8, 0)}, "fa3-fwd was built without windows"),
        (3, replace(H100, mode="infer"), "window", {}, "fa3-fwd was built without windows"),
        (3, replace(H100, mode="infer"), "alibi", {}, "it has no ALiBi"),
        (3, replace(A100, mode="infer"), "causal", {}, "it was tried for compute capability 9.x alone"),
        (2, H100, "causal", {"head_size": 512, "value_head_size": 512}, "head_size is 512; it takes multiples of 8"),
        (2, H100, "causal", {"head_size": 44, "value_head_size": 44}, "head_size is 44; it takes multiples of 8"),
        (2, H100, "value_head_size", {"value_head_size": 128}, "values have another head size than keys"),
        (2, H100, "dropout softcap", {"softcap": 30.0}, "it does not drop weights of soft-capped scores"),
    ],
)
def test_verdict_says_why_a_version_cannot_serve(version, context, features, fields, said, install):
    install(version)
    stage, reason, _ = verdict(context, features, **fields)
    assert stage == "supports"
    (line,) = [
        line for line in reason.split("; FlashAttention ") if line.removeprefix("FlashAttention ")[0] == str(version)
    ]
    assert said in line


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (2, None, "cannot be imported: ModuleNotFoundError: No module named 'flash_attn"),
        (4, "import triton_that_is_gone", "ModuleNotFoundError: No module named 'triton_that_is_gone'"),
        (3, "raise ImportError('fa3_fwd/_C.abi3.so: undefined symbol: _ZN2at')", "undefined symbol: _ZN2at"),
        (2, "raise RuntimeError('no CUDA driver')", "RuntimeError: no CUDA driver"),
    ],
    ids=["metadata alone", "a dependency is missing", "built for another torch", "another error"],
)
def test_verdict_when_the_package_cannot_be_imported(number, code, said, install):
    files = {2: "flash_attn/flash_attn_interface.py", 3: "fa3_fwd_interface.py", 4: "flash_attn/cute/__init__.py"}
    site = install(number, code=code is not None)
    if code is not None:
        (site / files[number]).write_text(code)
    stage, reason, _ = verdict(replace(H100, mode="infer"))
    assert stage == "supports"
    assert f"FlashAttention {number}: " in reason
    assert said in reason


def test_verdict_when_importing_the_package_warns(install):
    site = install(4)
    (site / "flash_attn" / "cute" / "__init__.py").write_text(
        "import warnings; warnings.warn('old', DeprecationWarning)"
    )
    assert verdict() == ("ok", "", None)


@pytest.mark.parametrize("number", [2, 4])
def test_verdict_when_all_is_there(number, install):
    install(number)
    assert verdict() == ("ok", "", None)


@pytest.mark.parametrize(
    ("context", "features", "fields", "number"),
    [
        (H100, "causal", {}, 4),
        (A100, "causal", {}, 2),
        (H100, "dropout", {}, 2),
        (H100, "alibi", {}, 2),
        (H100, "value_head_size", {"value_head_size": 128}, 4),
        (replace(H100, device="meta", compute_capability=None), "causal", {}, 4),
    ],
)
def test_the_newest_version_that_can_serves(context, features, fields, number, install):
    install(2, 3, 4)
    assert choose(request_of(context, features, **fields)).number == number
    assert objections(request_of(context, features, **fields)) == ()


def test_flash_attention_3_serves_where_4_is_absent(install):
    install(2, 3)
    assert choose(request_of(replace(H100, mode="infer"))).number == 3


def test_a_version_that_is_wanted_and_cannot_serve_is_an_error_that_names_those_that_can(install):
    install(2, 4)
    with pytest.raises(SpecError) as caught:
        choose(request_of(features="dropout"), 4)
    assert str(caught.value).splitlines() == [
        "flash_attention with version: 4 cannot serve.",
        "  Available:  version: 2",
        "  Failed:     FlashAttention 4: it has no dropout",
        "  Try:        version: auto takes the newest that can",
    ]


def test_no_version_at_all_is_an_error(site):
    with pytest.raises(SpecError) as caught:
        choose(request_of())
    assert caught.value.failed == (NOT_4, NOT_3, NOT_2)
    assert caught.value.hint == "another core attention"


SPEC = {
    "name": "small",
    "vocab_size": 32,
    "max_sequence_length": 16,
    "config": {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "attention_dropout": 0.0},
}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "FlashAttention 4 (flash-attn-4 4.0.0b36)"),
        ({"core_attention/flash_attention": {"version": 2}}, "FlashAttention 2 (flash-attn 2.8.3)"),
    ],
)
def test_plan_says_which_version_serves(options, said, install):
    install(2, 4)
    use = {"core_attention": "flash_attention | torch_dot_product"}
    made = transom.plan(SPEC, device="meta", dtype="bfloat16", use=use, options=options)
    assert f"serves by {said}" in " ".join(str(made).split())


def test_plan_raises_when_the_version_that_is_wanted_cannot_serve(install):
    install(2)
    with pytest.raises(SpecError, match=r"flash_attention with version: 4 cannot serve\."):
        transom.plan(
            SPEC, device="meta", dtype="bfloat16", use={"core_attention": "flash_attention"},
            options={"core_attention": {"version": 4}},
        )  # fmt: skip


def test_chain_falls_through_with_one_line_and_without_the_options(site, caplog):
    registry = Registry(default_registry().index)
    with caplog.at_level(logging.INFO, "transom"):
        for _ in range(3):
            chosen = resolve(
                "core_attention", "flash_attention | torch_dot_product", request_of(BuildContext()), registry=registry
            ).chosen
    assert chosen.name == "torch_dot_product"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"core_attention {REF} is passed over (requires): it requires flash-attn-4")
    options = {"core_attention/flash_attention": {"version": 4}}
    use = {"core_attention": "flash_attention | torch_dot_product"}
    assert transom.plan(SPEC, use=use, options=options).to_dict()["nodes"]


def test_importing_the_plugin_imports_no_flash_attention(install):
    site = install(2, 4)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import transom_flash_attention.attention, transom_flash_attention.versions\n"
        "print(*(name for name in sys.modules if name.startswith(('flash_attn', 'fa3_fwd', 'triton', 'cutlass'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("version", "mode", "served"), [(2, "train", True), (4, "train", False), (4, "infer", True)])
def test_verdict_where_the_same_bits_are_asked_for_twice(version, mode, served, install):
    install(version)
    stage, reason, _ = verdict(replace(H100, deterministic=True, mode=mode), "causal")
    assert (stage == "ok") is served
    assert (
        "FlashAttention 4: whether its backward pass can give the same bits twice is not known" in reason
    ) is not served
