"""Every call into Apex is one that Apex was recorded to take, by the plugin and by what stands in for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import transom_apex_norm
from transom.testing.call_contract import unmet_calls

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "contract" / "apex.json").read_text(encoding="utf-8"))
SOURCES = sorted(Path(transom_apex_norm.__path__[0]).glob("*.py"))


def test_plugin_calls_only_what_apex_has():
    assert unmet_calls(SOURCES, RECORD["names"]) == ()


def test_plugin_calls_everything_that_is_recorded():
    text = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    assert [name for name in RECORD["names"] if f"{name.rpartition('.')[2]}" not in text] == []


@pytest.mark.parametrize("argument", ["eps", "memory_efficient", "normalized_shape"])
def test_plugin_would_be_caught_when_apex_dropped_an_argument(argument):
    changed = {
        name: entry | {"parameters": _without(entry["parameters"], argument)} for name, entry in RECORD["names"].items()
    }
    assert any(f"takes no argument '{argument}'" in complaint for complaint in unmet_calls(SOURCES, changed))


def _without(parameters: str, argument: str) -> str:
    return ", ".join(each for each in parameters.split(", ") if each.split("=")[0] != argument)


def test_stand_in_has_the_recorded_signatures():
    spec = importlib.util.spec_from_file_location("record", HERE / "contract" / "record.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.read(HERE / "stand_in") == RECORD["names"]
