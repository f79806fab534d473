"""Every call into Transformer Engine is one that it was recorded to take, and what stands in for it takes no other."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import transom_te_linear
from transom.testing.call_contract import record, unmet_calls

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "contract" / "transformer-engine.json").read_text(encoding="utf-8"))["names"]
PACKAGE = Path(transom_te_linear.__path__[0])
SOURCES = sorted(PACKAGE.glob("*.py"))
STAND_INS = {
    "transformer_engine.pytorch": ("modules.py", "Linear", "LayerNormLinear", "LayerNormMLP"),
    "transformer_engine.pytorch.attention": ("attention.py", "DotProductAttention"),
}


def test_plugin_calls_only_what_the_package_has():
    assert unmet_calls(SOURCES, RECORD) == ()


def test_plugin_calls_everything_that_is_recorded():
    text = (PACKAGE / "engine.py").read_text(encoding="utf-8")
    assert [name for name in RECORD if name.rpartition(".")[2] not in text] == []


def test_only_one_module_calls_into_the_package():
    others = "".join(file.read_text(encoding="utf-8") for file in SOURCES if file.name != "engine.py")
    assert "from transformer_engine" not in others
    assert "import transformer_engine" not in others


@pytest.mark.parametrize("argument", ["params_dtype", "return_bias", "is_first_microbatch", "window_size"])
def test_plugin_would_be_caught_when_the_package_dropped_an_argument(argument):
    changed = json.loads(json.dumps(RECORD).replace(f"{argument}=", f"new_{argument}="))
    assert any(f"takes no argument '{argument}'" in complaint for complaint in unmet_calls(SOURCES, changed))


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, *names in STAND_INS.values() for name in names])
def test_stand_in_takes_no_argument_that_the_package_does_not_take(file, name):
    text = (HERE / "stand_in" / "transformer_engine" / "pytorch" / file).read_text(encoding="utf-8")
    found = record({"stand_in": text}, {f"stand_in.{name}": "stand_in"})[f"stand_in.{name}"]
    real = RECORD[f"transformer_engine.pytorch.{name}"]
    assert _names(found["parameters"]) <= _names(real["parameters"])
    assert _names(found["methods"]["forward"]) <= _names(real["methods"]["forward"])


def _names(parameters: str) -> set[str]:
    arguments = ast.parse(f"def f({parameters}): ...").body[0].args
    return {each.arg for each in (*arguments.args, *arguments.kwonlyargs)}
