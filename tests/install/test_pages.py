"""How-to pages that show whole packages: their files are written and installed, and do what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[2]


def _commands(page: str, verb: str) -> list[list[str]]:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"transom {verb} ")]


def test_define_a_slot_shows_one_that_is_filled_planned_built_and_tested(environment, written):
    page = "docs/how-to/define-a-slot.md"
    files = written(page)
    environment.install(files / "acme-moe")

    (listing,) = _commands(page, "list")
    listed = json.loads(environment.transom(*listing, "--json").stdout)
    assert [facts["ref"] for facts in listed["implementations"]] == ["acme-moe/top"]
    assert listed["problems"] == []
    for command in _commands(page, "plan"):
        planned = environment.transom(*command, "--json")
        assert planned.returncode == 0, planned.stderr
        routers = [node for node in json.loads(planned.stdout)["nodes"] if node["slot"] == "acme_router"]
        assert {node["chosen"] for node in routers} == {"acme-moe/top"}
        assert len(routers) == 4

    built = environment.run(str(files / "try_it.py"))
    assert built.returncode == 0, built.stderr
    assert built.stdout == "torch.Size([1, 3, 256])\n"

    whole, kit = _commands(page, "check")
    checked = environment.transom(*whole)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = environment.transom(*kit, "--json")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    statuses = {case["case"]: case["status"] for case in json.loads(tested.stdout)[0]["cases"]}
    assert set(statuses.values()) == {"passed"}
    assert any(case.startswith("routing/sum") for case in statuses)
    mixture = environment.transom("check", "mlp/acme_experts", "--conformance")
    assert mixture.returncode == 0, mixture.stdout + mixture.stderr


def test_test_a_plugin_shows_the_failure_that_its_package_has(environment, written):
    page = "docs/how-to/test-a-plugin.md"
    environment.install(written(page) / "acme-norm")
    text = (ROOT / page).read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(failed agreement.*?)^```$", text, re.MULTILINE | re.DOTALL)
    done = environment.transom("check", "acme_norm", "--conformance", "--only", "rmsnorm_small")
    assert done.returncode == 1, done.stdout + done.stderr
    assert shown in done.stdout
