"""Every call into FlashAttention is one that it was recorded to take, by the plugin and by what stands in for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import transom_flash_attention
from transom.testing.call_contract import unmet_calls

HERE = Path(__file__).parent
PACKAGE = Path(transom_flash_attention.__path__[0])
FILES = {"flash-attn": "fa2.py", "fa3-fwd": "fa3.py", "flash-attn-4": "fa4.py"}
STAND_INS = {
    "flash-attn": "fa2/flash_attn/flash_attn_interface.py",
    "fa3-fwd": "fa3/fa3_fwd_interface.py",
    "flash-attn-4": "fa4/flash_attn/cute/interface.py",
}
EACH = pytest.mark.parametrize("distribution", list(FILES))


def recorded(distribution: str) -> dict:
    return json.loads((HERE / "contract" / f"{distribution}.json").read_text(encoding="utf-8"))


@EACH
def test_plugin_calls_only_what_the_package_has(distribution):
    assert unmet_calls([PACKAGE / FILES[distribution]], recorded(distribution)["names"]) == ()


@EACH
def test_plugin_calls_everything_that_is_recorded(distribution):
    text = (PACKAGE / FILES[distribution]).read_text(encoding="utf-8")
    assert [name for name in recorded(distribution)["names"] if f" {name.rpartition('.')[2]}\n" not in text] == []


def test_nothing_else_of_the_plugin_calls_into_a_package():
    names = {name: entry for each in FILES for name, entry in recorded(each)["names"].items()}
    others = [file for file in sorted(PACKAGE.glob("*.py")) if file.name not in FILES.values()]
    text = "".join(file.read_text(encoding="utf-8") for file in others)
    assert unmet_calls(others, names) == ()
    assert "import flash_attn" not in text
    assert "from fa3_fwd" not in text


@EACH
def test_plugin_would_be_caught_when_the_package_dropped_an_argument(distribution):
    changed = {
        name: entry | {"parameters": entry["parameters"].replace("causal", "is_causal")}
        for name, entry in recorded(distribution)["names"].items()
    }
    found = unmet_calls([PACKAGE / FILES[distribution]], changed)
    assert len([line for line in found if "takes no argument 'causal'" in line]) == len(changed)


@EACH
def test_stand_in_has_the_recorded_signatures(distribution):
    spec = importlib.util.spec_from_file_location("record", HERE / "contract" / "record.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    source = (HERE / "stand_in" / STAND_INS[distribution]).read_text(encoding="utf-8")
    assert script.read(distribution, source) == recorded(distribution)["names"]
