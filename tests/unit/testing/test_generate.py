from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from transom import list_implementations
from transom.errors import PluginImportError, UnknownSlotError
from transom.registry.implementation import Implementation
from transom.registry.registry import default_registry
from transom.slots import SLOTS
from transom.testing import cases_for, declaration_cases
from transom.testing.generate import _GENERATORS
from transom.testing.report import AREAS


def test_every_slot_has_cases():
    assert set(_GENERATORS) == set(SLOTS)


@pytest.mark.parametrize("slot", SLOTS)
def test_cases_of_a_slot_have_ids_of_their_own_and_known_areas(slot):
    for implementation in list_implementations(slot):
        cases = cases_for(implementation)
        assert len({case.id for case in cases}) == len(cases)
        assert {case.area for case in cases} <= set(AREAS)
        assert all(case.shows and not case.shows.endswith(".") for case in cases)


def test_cases_for_imports_no_plugin(norm):
    assert cases_for(norm(code="import sys\nsys.is_imported = True"))
    assert not hasattr(sys, "is_imported")


def test_cases_for_begins_with_the_declaration(norm):
    implementation = norm()
    first = declaration_cases(implementation)
    assert [case.id for case in cases_for(implementation)[: len(first)]] == [case.id for case in first]


def test_cases_for_asks_for_declared_features_alone(norm):
    names = {case.name for case in cases_for(norm(features=["rmsnorm"])) if case.area == "agreement"}
    assert "rmsnorm" in names
    assert not {name for name in names if "layernorm" in name or "zero_centered" in name}


def test_cases_for_tries_principal_calls_in_every_declared_dtype(norm):
    cases = cases_for(norm(dtypes=["float32", "bfloat16"]))
    assert {case.dtype for case in cases if case.name == "rmsnorm" and case.area == "agreement"} == {
        "float32",
        "bfloat16",
    }
    assert {case.dtype for case in cases if case.name == "rmsnorm_odd"} == {"float32"}


def test_cases_for_leave_gradients_out_where_none_are_declared(norm):
    names = {case.name for case in cases_for(norm(modes=["infer"]))}
    assert "rmsnorm" in names
    assert not names & {"optimizer", "recompute", "frozen"}


@pytest.mark.parametrize(("field", "name"), [("compiles", "compile"), ("deterministic", "deterministic")])
def test_cases_for_compile_or_repeat_what_is_declared_and_expect_a_refusal_otherwise(norm, field, name):
    declared = {(case.area, case.name) for case in cases_for(norm(**{field: True}))}
    undeclared = {(case.area, case.name) for case in cases_for(norm(distribution="other-norm", **{field: False}))}
    assert ("module", name) in declared - undeclared
    assert ("refused", name) in undeclared - declared


def test_cases_for_a_missing_device_say_so(norm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = "it needs cuda, and this machine has none that torch can use"
    cases = cases_for(norm(devices=["cuda"]))
    assert {case.unavailable for case in cases if case.device == "cuda"} == {reason}
    assert not [case for case in cases if case.device == "cpu"]
    (one,) = [case for case in cases_for(norm(distribution="other-norm", devices=["cpu", "cuda"])) if case.unavailable]
    assert (one.id, one.unavailable) == ("card/cuda", reason)


def test_cases_for_stop_at_a_broken_card(site):
    site.install("acme-norm", card="card = 2")
    implementation = Implementation("norm", "fast", "acme-norm", "1.0", "acme_norm.parts:Fast")
    assert {case.area for case in cases_for(implementation)} == {"card", "refused", "import"}


@pytest.mark.parametrize("make", [cases_for, declaration_cases])
def test_cases_of_a_slot_that_there_is_not_are_refused(make):
    with pytest.raises(UnknownSlotError, match="no slot is named 'gate'"):
        make(Implementation("gate", "fast", "acme-gate", "1.0", "acme_gate:Fast"))


@pytest.mark.parametrize("make", [cases_for, declaration_cases])
def test_cases_of_a_slot_that_has_none_are_refused(make, monkeypatch):
    bare = replace(SLOTS["norm"], name="gate")
    monkeypatch.setattr(default_registry(), "_slots", {**default_registry()._slots, "gate": bare})
    with pytest.raises(UnknownSlotError) as caught:
        make(Implementation("gate", "fast", "acme-gate", "1.0", "acme_gate:Fast"))
    assert caught.value.what == "there are no conformance cases for slot 'gate'."
    assert caught.value.slot == "gate"
    assert "norm" in caught.value.available
    assert (
        caught.value.hint == "the distribution that defines a slot says in Slot(conformance=...) which module tests it"
    )


def test_cases_of_a_slot_whose_module_cannot_be_imported_say_so(monkeypatch):
    lost = replace(SLOTS["norm"], name="gate", conformance="acme_gone.cases")
    monkeypatch.setattr(default_registry(), "_slots", {**default_registry()._slots, "gate": lost})
    with pytest.raises(PluginImportError, match="the conformance cases of slot gate cannot be imported: Mod"):
        cases_for(Implementation("gate", "fast", "acme-gate", "1.0", "acme_gate:Fast"))
