"""`transom show hooks/NAME` and `transom show bundles/NAME`."""

from __future__ import annotations

import json
import sys

import pytest
from transom.cli.main import main

CODE = '''
from dataclasses import dataclass
from transom import hookimpl

class Lora:
    """Adapters of low rank."""

    @dataclass
    class Options:
        """What adapters there are.

        Args:
            rank: of each.
        """

        rank: int
        scale: float = 2.0

    def __init__(self, options): ...

    @hookimpl
    def transom_module_built(self, module, path): ...

    @hookimpl
    def transom_doctor(self): ...
'''
POINTS = "[transom.hooks]\nrank = acme_tune.parts:Lora\n[transom.bundles]\nfast = acme_tune:fast\n"
BUNDLE = """
bundle = 1
description = "Acme's kernels"
hooks = ["a", {hook = "rank", options = {rank = 8}}]
[use]
norm = "fast | torch_norm"
linear = ["fast", "torch_linear"]
[options.mlp]
experts = 8
"""


@pytest.fixture
def tune(site, install):
    install("acme-tune", POINTS, code=CODE)
    (site.root / "acme_tune" / "fast.toml").write_text(BUNDLE)


def test_show_reads_only_the_metadata_of_a_hook(tune, capsys):
    assert main(["show", "hooks/rank"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rank, a hook",
        "  distribution    acme-tune 1.0",
        "  name it as      hooks: [acme-tune/rank]",
        "  entry point     acme_tune.parts:Lora",
        "  called          --import says when, and with which options",
    ]
    assert "acme_tune" not in sys.modules


def test_show_imports_a_hook_when_asked_to(tune, capsys):
    assert main(["show", "hooks/acme-tune/rank", "--import"]) == 0
    assert capsys.readouterr().out.splitlines()[4:] == [
        "  called          transom_module_built",
        "                  transom_doctor",
        "  options         rank, integer, required: of each.",
        "                  scale, number, default 2.0",
        "  documentation   Adapters of low rank.",
    ]
    main(["show", "hooks/rank", "--import", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["ref"]) == ("hooks", "acme-tune/rank")
    assert facts["options"]["required"] == ["rank"]


def test_show_tells_what_a_bundle_says(tune, capsys):
    assert main(["show", "bundles/fast"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fast, a bundle",
        "  distribution    acme-tune 1.0",
        "  name it as      bundle: acme-tune/fast",
        "  description     Acme's kernels",
        "  use             norm: fast | torch_norm",
        '                  linear: ["fast", "torch_linear"]',
        '  options         mlp: {"experts": 8}',
        "  hooks           a",
        '                  {"hook": "rank", "options": {"rank": 8}}',
    ]
    main(["show", "bundles/fast", "--json"])
    assert json.loads(capsys.readouterr().out)["says"]["options"] == {"mlp": {"experts": 8}}


@pytest.mark.parametrize(
    ("ref", "error"),
    [("hooks/rnk", "HookError: no hook is named 'rnk'."), ("bundles/fst", "SpecError: no bundle is named 'fst'.")],
)
def test_show_refuses_a_name_that_there_is_not(tune, capsys, ref, error):
    assert main(["show", ref]) == 2
    err = capsys.readouterr().err
    assert err.startswith(error)
    assert "  Asked by:   transom show\n" in err
