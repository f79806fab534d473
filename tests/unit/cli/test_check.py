"""`transom check`."""

from __future__ import annotations

import json
import re

import pytest
from transom.cli import check as check_verb
from transom.cli.main import main
from transom.registry.registry import Registry

NORM = """
import torch
from torch import nn


class Fast(nn.Module):
    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x, /):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * self.weight
"""


@pytest.fixture
def plugin(site, make_card, monkeypatch):
    """Install a norm that forgets eps; the verb sees it, as if this process had just started."""
    card = make_card("norm.fast", features=["rmsnorm"], dtypes=["float32"], devices=["cpu", "cuda"])
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, code=NORM, card=card)
    registry = Registry()
    monkeypatch.setattr(check_verb, "default_registry", lambda: registry)


def test_check_without_conformance_reads_and_imports_alone(plugin, capsys):
    assert main(["check", "fast"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "norm fast (acme-norm 1.0)"
    assert [line.split()[0] for line in lines[2:5]] == ["card", "refused", "import"]
    assert lines[-1].endswith("cases passed, 0 failed, 0 skipped.")
    assert set(printed.err.strip()) == {"."}


def test_check_with_conformance_fails_and_says_why(plugin, capsys):
    assert main(["check", "norm/fast", "--conformance", "--only", "rmsnorm"]) == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("failed agreement/rmsnorm_small[cpu-float32]")
    assert lines[start + 1] == "  should show: eps is added to the variance: inputs whose own is smaller"
    assert lines[start + 2].startswith("  output: ")


@pytest.mark.parametrize(
    ("only", "verdict"),
    [
        ("rmsnorm_small", "Its declaration is right; 1 case failed."),
        ("rmsnorm_", "Its declaration is right; {} cases failed."),
        ("card/cuda", "Its declaration is right; no case passed."),
        ("import", "Nothing is wrong."),
    ],
)
def test_check_of_a_distribution_tells_its_declaration_from_its_cases(plugin, capsys, monkeypatch, only, verdict):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("transom.diagnosis.check.check_distribution", lambda *_, **__: [])
    status = main(["check", "acme-norm", "--conformance", "--only", only])
    lines = capsys.readouterr().out.splitlines()
    failed = sum(int(cells[2]) for line in lines if (cells := line.split())[:1] == ["agreement"])
    assert lines[-1] == f"acme-norm: {verdict.format(failed)}"
    assert status == (0 if verdict.startswith("Nothing") else 1)


def test_check_lists_every_case_when_asked_to(plugin, capsys):
    main(["check", "fast", "--conformance", "--only", "rmsnorm_e", "--all"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["agreement/rmsnorm_eps[cpu-float32]", "failed"] in [row[:2] for row in rows]


def test_check_tells_once_what_many_cases_fail_of(site, make_card, monkeypatch, capsys):
    code = NORM.replace("return x * ", "raise KeyError('moon')\n        return x * ")
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, code=code, card=make_card("norm.fast", features=["rmsnorm"]))
    registry = Registry()
    monkeypatch.setattr(check_verb, "default_registry", lambda: registry)
    assert main(["check", "fast", "--conformance", "--only", "agreement/rmsnorm_"]) == 1
    out = capsys.readouterr().out
    assert out.count("\nfailed agreement/rmsnorm_") == out.count("KeyError: 'moon'") == 1
    assert "transom/testing" not in out
    assert re.search(r"\n  \d+ other cases failed alike: agreement/rmsnorm_\w+\[", out)


def test_check_shows_what_could_not_be_run(plugin, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["check", "fast", "--conformance", "--only", "card"])
    out = capsys.readouterr().out
    assert "\nskipped card/cuda: it needs cuda, and this machine has none that torch can use\n" in out


def test_check_writes_a_report_and_a_badge(plugin, tmp_path, capsys):
    report, badge = tmp_path / "report.json", tmp_path / "badge.md"
    arguments = ["--conformance", "--only", "rmsnorm", "--report", str(report), "--badge", str(badge), "--json"]
    assert main(["check", "fast", *arguments]) == 1
    (data,) = json.loads(report.read_text())
    assert json.loads(capsys.readouterr().out) == [data]
    assert (data["ref"], data["conforms"]) == ("acme-norm/fast", False)
    failed = sorted(case["case"] for case in data["cases"] if case["status"] == "failed")
    assert "agreement/rmsnorm_small[cpu-float32]" in failed
    assert badge.read_text().startswith(f"### `fast` (norm), acme-norm 1.0: **{len(failed)} cases fail**\n")


@pytest.mark.parametrize("name", ["report.json", "report.md", "report"])
def test_check_writes_a_markdown_table_beside_its_report(plugin, tmp_path, name):
    assert main(["check", "fast", "--conformance", "--only", "rmsnorm", "--report", str(tmp_path / name)]) == 1
    data = "report" if name == "report" else "report.json"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [data, "report.md"]
    assert json.loads((tmp_path / data).read_text())[0]["ref"] == "acme-norm/fast"
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0].startswith("### `fast` (norm), acme-norm 1.0: **")
    assert lines[2] == "| area | what it shows | passed | failed | skipped |"


def test_check_refuses_a_filter_that_leaves_nothing(plugin, capsys):
    assert main(["check", "fast", "--only", "moon"]) == 2
    assert "no case of norm acme-norm/fast has 'moon' in its id." in capsys.readouterr().err


def test_check_refuses_an_unknown_name(capsys):
    assert main(["check", "dot_prodct"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("UnknownImplementationError: no implementation is named 'dot_prodct'.")
    assert "Asked by:   transom check" in error


def test_check_refuses_a_file_that_cannot_be_written(plugin, tmp_path, capsys):
    assert main(["check", "fast", "--only", "readable", "--report", str(tmp_path / "no" / "report.json")]) == 2
    assert "OutputError: cannot write" in capsys.readouterr().err
