"""Every call into Liger Kernel is one that it was recorded to take, by the plugin and by what stands in for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import transom_liger
from transom.testing.call_contract import unmet_calls

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "contract" / "liger-kernel.json").read_text(encoding="utf-8"))
SOURCES = sorted(Path(transom_liger.__path__[0]).glob("*.py"))


def test_plugin_calls_only_what_liger_kernel_has():
    assert unmet_calls(SOURCES, RECORD["names"]) == ()


def test_plugin_calls_everything_that_is_recorded():
    text = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    assert [name for name in RECORD["names"] if f"{name.rpartition('.')[2]}.apply(" not in text] == []


@pytest.mark.parametrize("name", sorted(RECORD["names"]))
def test_plugin_would_be_caught_when_an_operator_took_less(name):
    entry = RECORD["names"][name]
    first, *_ = entry["methods"]["apply"].split(", ")
    changed = RECORD["names"] | {name: entry | {"methods": {"apply": f"{first}, /"}}}
    complaints = unmet_calls(SOURCES, changed)
    takes_more = not name.endswith("LigerFusedGateUpSiLUMulFunction")  # which the plugin gives one argument
    assert any(name.rpartition(".")[2] in each for each in complaints) == takes_more


def test_stand_in_has_the_recorded_signatures():
    spec = importlib.util.spec_from_file_location("record", HERE / "contract" / "record.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    texts = HERE / "stand_in"
    assert script.read(lambda module: (texts / f"{module.replace('.', '/')}.py").read_text()) == RECORD["names"]
