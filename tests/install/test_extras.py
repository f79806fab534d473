"""Heavy packages are extras: no distribution here brings one by itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = [path for room in ("plugins", "contrib") for path in sorted(ROOT.glob(f"{room}/*/pyproject.toml"))]
HEAVY = {
    "flash-attn",
    "flash-attn-4",
    "fa3-fwd",
    "transformer-engine",
    "apex",
    "triton",
    "nvidia-cutlass-dsl",
    "liger-kernel",
}


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", each).group().lower() for each in requirements}


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_plugin_depends_on_nothing_heavy(project):
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    assert _names(declared["dependencies"]) & HEAVY == set()


@pytest.mark.parametrize(
    ("plugin", "extras"),
    [
        ("plugins/flash_attention", {"fa2": {"flash-attn"}, "fa3": {"fa3-fwd"}, "fa4": {"flash-attn-4"}}),
        ("plugins/te_linear", {"te": {"transformer-engine"}}),
        ("plugins/apex_norm", {}),
        ("contrib/liger", {"liger": {"liger-kernel"}}),
    ],
)
def test_gpu_plugin_has_its_packages_as_extras(plugin, extras):
    declared = tomllib.loads((ROOT / plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {name: _names(entries) for name, entries in declared.get("optional-dependencies", {}).items()}
    assert found == extras
