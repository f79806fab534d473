"""Verbs that hooks of the user's config add."""

from __future__ import annotations

import re

import pytest
from transom.cli import hook_verbs as module
from transom.cli.hook_verbs import hook_verbs
from transom.registry.registry import Registry
from transom.registry.scan import scan

CODE = """
import click
from dataclasses import dataclass
from transom import hookimpl

class Greets:
    @dataclass
    class Options:
        word: str = "hello"

    def __init__(self, options):
        self.options = options

    @hookimpl
    def transom_cli_commands(self):
        return [click.Command(self.options.word)]

class Clashes:
    @hookimpl
    def transom_cli_commands(self):
        return [click.Command("new"), click.Command("train")]

class Wrong:
    @hookimpl
    def transom_cli_commands(self):
        return ["hello"]

class Raises:
    @hookimpl
    def transom_cli_commands(self):
        raise OSError("no disk")

class Other:
    @hookimpl
    def transom_doctor(self):
        return []
"""
POINTS = {"greets": "Greets", "clashes": "Clashes", "wrong": "Wrong", "raises": "Raises", "other": "Other"}


@pytest.fixture
def verbs(site, monkeypatch, tmp_path):
    """Give a function that asks the hooks of a config."""
    site.install("acme-verbs", {"hooks": POINTS}, code=CODE)
    monkeypatch.setattr(module, "default_registry", lambda: Registry(scan([str(site.root)])))

    def ask(config: str):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.toml"  # a file is read once
        path.write_text(config)
        monkeypatch.setenv("TRANSOM_CONFIG", str(path))
        return hook_verbs(["train", "plan"])

    return ask


def test_no_hook_is_asked_where_the_config_names_none(verbs, monkeypatch):
    monkeypatch.setattr(module, "default_registry", None)
    assert verbs("") == module.HookVerbs()


def test_hook_adds_its_verbs_with_its_options(verbs):
    assert list(verbs('hooks = ["other", "greets"]').commands) == ["hello"]
    assert list(verbs('hooks = [{hook = "greets", options = {word = "ahoy"}}]').commands) == ["ahoy"]


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ('"clashes"', r"HookError: .* answered a verb 'train', which there is already"),
        ('"wrong"', r"HookError: .* answered a str, not a click\.Command with a name"),
        ('"raises"', r"OSError: no disk \(in transom_cli_commands of the hook raises \(acme-verbs 1\.0\)\)"),
        ('{hook = "wrong", options = {a = 1}}', r"SpecError: the hook wrong \(acme-verbs 1\.0\) takes no options\."),
    ],
)
def test_hook_that_fails_costs_its_own_verbs_alone(verbs, hook, problem):
    found = verbs(f'hooks = [{hook}, "greets"]')
    assert list(found.commands) == ["hello"]
    (told,) = found.problems
    assert re.match(problem, told), told


@pytest.mark.parametrize(
    ("config", "problem"),
    [('hooks = ["gone"]', "no hook is named 'gone'."), ("hooks = 3", "hooks in the user's config is wrong")],
)
def test_config_that_is_wrong_is_told_and_adds_nothing(verbs, config, problem):
    found = verbs(config)
    assert found.commands == {}
    assert found.problems[0].startswith(problem)
