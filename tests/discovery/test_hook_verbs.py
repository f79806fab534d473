"""Verbs that really installed hooks add to the command line."""

from __future__ import annotations

import pytest

MAIN = "import sys; from transom.cli.main import main; sys.exit(main())"

VERBS = """
import click
from transom import hookimpl

@click.command("hello")
@click.argument("name")
def hello(name):
    "Greet somebody."
    click.echo(f"hello {name}")

class Verbs:
    @hookimpl
    def transom_cli_commands(self):
        return [hello]

class Clash:
    @hookimpl
    def transom_cli_commands(self):
        return [click.Command("train")]

class Wrong:
    @hookimpl
    def transom_cli_commands(self):
        return ["hello"]

class Raises:
    @hookimpl
    def transom_cli_commands(self):
        raise OSError("no disk")
"""


@pytest.fixture
def verbs(site):
    points = {"verbs": "Verbs", "clash": "Clash", "wrong": "Wrong", "raises": "Raises"}
    site.install("acme-verbs", {"hooks": points}, code=VERBS)
    return site


def test_hook_of_the_user_s_config_adds_a_verb(verbs, write_config):
    environment = write_config('hooks = ["verbs"]')
    done = verbs.run_raw(MAIN, "hello", "you", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello you\n", "")
    shown = verbs.run_raw(MAIN, "--help", **environment).stdout
    assert "Commands of hooks:\n  hello  Greet somebody." in shown
    done = verbs.run_raw(MAIN, "helo", **environment)
    assert done.returncode == 2
    assert "No such command 'helo'. Did you mean 'hello'?" in done.stderr


def test_hook_that_the_config_does_not_name_adds_no_verb(verbs):
    done = verbs.run_raw(MAIN, "hello", "you")
    assert done.returncode == 2
    assert "No such command 'hello'." in done.stderr


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        ("clash", "of the hook clash (acme-verbs 1.0) answered a verb 'train', which there is already."),
        ("wrong", "of the hook wrong (acme-verbs 1.0) answered a str, not a click.Command with a name."),
        ("raises", "OSError: no disk (in transom_cli_commands of the hook raises (acme-verbs 1.0))"),
        ("gone", "no hook is named 'gone'."),
    ],
)
def test_hook_that_adds_no_verb_is_told_and_keeps_no_other_verb_from_working(verbs, write_config, hook, complaint):
    environment = write_config(f'hooks = ["{hook}"]')
    shown = verbs.run_raw(MAIN, "--help", **environment)
    assert shown.returncode == 0
    assert complaint in " ".join(shown.stdout.split())
    assert verbs.run_raw(MAIN, "schema", "card", **environment).returncode == 0
    assert complaint in verbs.run_raw(MAIN, "hello", **environment).stderr


def test_listing_imports_no_hook_even_of_the_user_s_config(verbs, write_config):
    code = """
import json, sys
from transom.cli.main import main
main(["list", "norm"])
print(json.dumps([n for n in ("acme_verbs", "pluggy", "torch") if n in sys.modules]))
"""
    assert verbs.run(code, **write_config('hooks = ["verbs"]')) == []
