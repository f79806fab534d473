"""`transom show SLOT`."""

from __future__ import annotations

import inspect
import json

import pytest
from transom.cli.main import main
from transom.registry.registry import default_registry
from transom.slots import SLOTS


@pytest.mark.parametrize("slot", SLOTS)
def test_show_of_a_slot_tells_its_contract(capsys, slot):
    assert main(["show", f"slots/{slot}", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    there = SLOTS[slot]
    assert (found["name"], found["kind"], found["default"]) == (slot, there.kind, there.default)
    assert (found["group"], found["api"]) == (there.group, "{}.{}".format(*there.api))
    assert found["features"] == dict(there.features)
    all_described = [found["builder"], *found["interfaces"]]
    for described, documented in zip(all_described, [there.builder, *there.interfaces], strict=True):
        assert described["documentation"] == inspect.getdoc(documented)
        assert described["methods"]
        for name, method in described["methods"].items():
            parameters = [each for each in inspect.signature(getattr(documented, name)).parameters if each != "self"]
            assert all(f"{each}:" in method["signature"] for each in parameters)
            assert method["documentation"] == inspect.getdoc(getattr(documented, name))


def test_show_of_a_slot_without_an_implementation_of_its_name_needs_no_prefix(capsys):
    assert main(["show", "norm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "norm, a slot",
        "  entry points    transom.norm",
        "  slot            LayerNorm or RMSNorm over the last dimension (kernel slot, contract 1.0)",
    ]
    assert "                  __call__(config: TransformerConfig, hidden_size: int, eps: float) -> Norm" in lines
    assert "                  forward(x: Tensor, /) -> Tensor" in lines
    assert lines[-1] == "  more            transom list norm   transom new NAME --slot norm"
    assert [line for line in lines if line != line.rstrip()] == []


def test_show_prefers_an_implementation_and_names_its_slot(capsys):
    assert main(["show", "mlp"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mlp, for slot mlp\n")
    assert "  contract        transom show slots/mlp\n" in out


@pytest.mark.parametrize("ref", ["linear", "slots/linear"])
def test_show_takes_a_name_of_several_slots(capsys, ref):
    assert main(["show", ref, "--json"]) == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == ["column_linear", "row_linear"]


GATE = """
from transom.slots.norm import NORM
from dataclasses import replace
Made = replace(NORM, name="gate", summary="a gate")
"""


def test_show_of_a_plugins_slot_is_read_when_asked_to_import(install, capsys):
    install("acme-slots", {"slots": {"gate": "Made"}}, code=GATE)
    assert main(["show", "gate"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gate, a slot",
        "  entry points    transom.gate",
        "  contract        --import reads it: a plugin defines this slot",
    ]
    assert main(["show", "gate", "--import"]) == 0
    assert "a gate (kernel slot" in capsys.readouterr().out


def test_show_of_no_slot_is_refused(capsys):
    assert "gates" not in default_registry().slots
    assert main(["show", "slots/gates"]) == 2
    assert "no implementation is named 'slots/gates'." in capsys.readouterr().err
