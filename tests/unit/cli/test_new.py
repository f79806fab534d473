"""`transom new`."""

from __future__ import annotations

import pytest
from transom.cli.main import main


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_new_writes_a_plugin_and_says_how_to_go_on(tmp_path, capsys):
    assert main(["new", "acme-norm", "--slot", "norm"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Wrote acme-norm, which fills norm as acme_norm:\n")
    assert "acme-norm/src/acme_norm/transom.toml" in out
    steps = ["cd acme-norm", "python -m pip install --upgrade pip", "pip install -e . --group test", "pytest"]
    assert out.partition("\nNow:\n")[2] == "".join(f"  {step}\n" for step in steps)
    assert (tmp_path / "acme-norm" / "src" / "acme_norm" / "norm.py").is_file()


def test_new_writes_where_it_is_told(tmp_path):
    assert main(["new", "acme-norm", "--slot", "norm", "--out", "elsewhere", "--author", "Somebody"]) == 0
    assert "Somebody" in (tmp_path / "elsewhere" / "LICENSE").read_text()


def test_new_refuses_what_it_cannot_write(capsys):
    assert main(["new", "acme-norm", "--slot", "nrom"]) == 2
    assert "norm?" in capsys.readouterr().err
