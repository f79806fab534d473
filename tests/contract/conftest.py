"""Implementations under test, from a package on disk with a card beside it."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from transom.registry.implementation import Implementation
from transom.slots import SLOTS

PARTS = Path(__file__).parent / "plugins" / "wrong_parts"
DISTRIBUTED = {"tensor_parallel", "sequence_parallel"}


def _names(module: Path) -> list[str]:
    """Name what a module defines and its card declares."""
    body = ast.parse(module.read_text(encoding="utf-8")).body
    defined = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    defined += [t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
    return [name for name in defined if not name.startswith(("_", "Undeclared"))]


def _section(slot: str, name: str) -> str:
    left_out = set() if name.startswith("Parallel") else set(DISTRIBUTED)
    if not name.startswith("T5"):
        left_out.add("encoder_decoder")
    features = json.dumps([feature for feature in SLOTS[slot].features if feature not in left_out])
    return (
        f'[{slot}.{name}]\napi = "1.0"\ndevices = ["cpu"]\ndtypes = ["any"]\nmodes = ["train", "infer"]\n'
        f"compiles = true\ndeterministic = true\nfeatures = {features}\n"
    )


def _card() -> str:
    sections = [
        _section(slot, name)
        for slot in SLOTS
        if (PARTS / f"{slot}.py").exists()
        for name in _names(PARTS / f"{slot}.py")
    ]
    return "\n".join(["card = 1\n", *sections, _section("norm", "Impolite")])


@pytest.fixture(scope="session")
def wrong_parts(tmp_path_factory):
    """Install the package of wrong parts, with a card that declares every feature; give its directory."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(PARTS, site / "wrong_parts", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "wrong_parts" / "transom.toml").write_text(_card(), encoding="utf-8")
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.split(".")[0] == "wrong_parts"]:
        del sys.modules[name]


@pytest.fixture
def part(wrong_parts):
    """Give a function that makes the implementation of a slot by its class's name."""

    def make(slot: str, name: str, *, module: str | None = None) -> Implementation:
        return Implementation(slot, name, "wrong-parts", "1.0", f"wrong_parts.{module or slot}:{name}")

    return make
