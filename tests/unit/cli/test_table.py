"""Tables for people."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from transom.cli.table import print_table

ROWS = [("a_rather_long_name", "x" * 30), ("b", "y")]


def test_table_is_one_line_a_row_without_trailing_space_when_piped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_table(("name", "value"), ROWS)
    expected = f"name{' ' * 16}value\na_rather_long_name  {'x' * 30}\nb{' ' * 19}y\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("columns", [20, 30, 80])
def test_table_folds_to_the_terminal_and_cuts_nothing_off(columns):
    terminal, its_end = os.openpty()
    code = f"from transom.cli.table import print_table; print_table(('name', 'value'), {ROWS!r})"
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=its_end, env=env, check=True)
    os.close(its_end)
    lines = click.unstyle(os.read(terminal, 10_000).decode()).replace("\r\n", "\n").splitlines()
    os.close(terminal)
    assert max(map(len, lines)) <= columns
    text = "".join("".join(lines).split())
    assert text.count("x") == 30
    assert "…" not in text


def test_print_table_prints_square_brackets_as_they_are(capsys):
    print_table(["case"], [["agreement/causal[cpu-float32]"], ["[bold]"]])
    assert capsys.readouterr().out.splitlines() == ["case", "agreement/causal[cpu-float32]", "[bold]"]
