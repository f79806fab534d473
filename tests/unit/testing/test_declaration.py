from __future__ import annotations

import pytest
from transom.registry.implementation import Implementation
from transom.slots import SLOTS
from transom.testing import declaration_cases
from transom.testing.report import run_case


def _outcomes(implementation) -> dict[str, tuple[str, str]]:
    outcomes = [run_case(case) for case in declaration_cases(implementation) if case.area != "import"]
    return {outcome.case.id: (outcome.status, outcome.detail) for outcome in outcomes}


def test_right_declaration_passes(norm):
    assert {status for status, _ in _outcomes(norm()).values()} == {"passed"}


def test_everything_that_is_not_declared_is_tried(norm):
    implementation = norm(devices=["cpu"], dtypes=["float32"], modes=["infer"])
    refused = {case.name for case in declaration_cases(implementation) if case.area == "refused"}
    assert refused == {
        *("layernorm", "zero_centered_gamma"),
        *("float64", "bfloat16", "float16"),
        *("cuda", "xpu", "mps"),
        *("train", "compile", "deterministic"),
    }
    assert {status for status, _ in _outcomes(implementation).values()} == {"passed"}


@pytest.mark.parametrize("slot", [name for name, slot in SLOTS.items() if slot.kind == "kernel"])
def test_every_feature_of_a_kernel_that_is_not_declared_must_be_refused_with_a_reason(slot, site, make_card):
    features = sorted(SLOTS[slot].features)
    for declared in {(), tuple(features[:1]), tuple(features)}:
        name, package = f"acme-{len(declared)}", f"acme_{len(declared)}"
        site.install(
            name, {slot: {"one": "One"}}, code="class One: ...", card=make_card(f"{slot}.one", features=declared)
        )
        implementation = Implementation(slot, "one", name, "1.0", f"{package}.parts:One")
        cases = {case.name: case for case in declaration_cases(implementation) if case.area == "refused"}
        assert cases.keys() & set(features) == set(features) - set(declared)
        for feature in set(features) - set(declared):
            assert run_case(cases[feature]).status == "passed"


@pytest.mark.parametrize(
    ("fields", "case_id", "said"),
    [
        ({"features": ["moon"]}, "card/readable", "it declares what the slot norm does not know: moon"),
        ({"dtypes": ["int8"]}, "card/readable", "it declares none of the dtypes that can be tested: float32, "),
        ({"code": "import nothing_at_all"}, "card/importable", "ModuleNotFoundError: No module named 'nothing_at_all'"),
    ],
    ids=["feature", "dtype", "import"],
)
def test_wrong_declaration_fails(norm, fields, case_id, said):
    status, detail = _outcomes(norm(**fields))[case_id]
    assert status == "failed"
    assert said in detail


def test_broken_card_fails(site):
    site.install("acme-norm", card="card = 2")
    outcomes = _outcomes(Implementation("norm", "fast", "acme-norm", "1.0", "acme_norm.parts:Fast"))
    status, detail = outcomes["card/readable"]
    assert status == "failed"
    assert detail.startswith("its card is broken: card in the card of acme-norm is of version 2.")


def test_unmet_requirement_skips(norm):
    outcomes = _outcomes(norm(requires=["no-such-package>=3"]))
    reason = "it requires no-such-package>=3, which is not installed"
    assert outcomes["card/importable"] == ("skipped", reason)
    assert outcomes["refused/layernorm"] == ("skipped", f"requires: {reason}")


def test_refusals_of_a_device_that_is_not_here_are_tried_too(norm):
    outcomes = _outcomes(norm(devices=["cuda"], min_compute_capability="9.0"))
    assert outcomes["refused/layernorm"] == ("passed", "")
