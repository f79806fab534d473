"""What changed of the state that all code in a process shares."""

from __future__ import annotations

import random
import warnings

import pytest
from transom.diagnosis.state import changes, look


def test_nothing_changed_when_nothing_was_done():
    assert changes(look(), look()) == ()


def test_changes_name_old_and_new_value(monkeypatch):
    before = look()
    monkeypatch.setattr("sys.excepthook", print)
    monkeypatch.setenv("ACME_MODE", "fast")
    (variable, hook) = sorted(changes(before, look()))
    assert variable == "the environment variable ACME_MODE, now 'fast'"
    assert hook.startswith("the exception hook, from <")
    assert hook.endswith(" to <built-in function print>")


def test_changes_name_what_is_gone_and_what_another_value_has(monkeypatch):
    monkeypatch.setenv("ACME_MODE", "fast")
    monkeypatch.setenv("ACME_SIZE", "1")
    before = look()
    monkeypatch.delenv("ACME_MODE")
    monkeypatch.setenv("ACME_SIZE", "2")
    assert sorted(changes(before, look())) == [
        "the environment variable ACME_MODE, which is gone",
        "the environment variable ACME_SIZE, from 1 to 2",
    ]


def test_random_state_is_compared_and_not_shown():
    before, state = look(), random.getstate()
    random.random()
    after = look()
    random.setstate(state)
    assert changes(before, after) == ("the random state of Python",)
    assert changes(before, look()) == ()


def test_warnings_filter_that_is_added_is_named():
    with warnings.catch_warnings():
        before = look()
        warnings.filterwarnings("ignore", category=BytesWarning)
        (change,) = changes(before, look())
    assert change == "the warnings filter ('ignore', None, <class 'BytesWarning'>, None, 0), which is new"


def test_function_of_torch_that_is_replaced_is_named_and_one_that_is_added_is_not(monkeypatch):
    torch = pytest.importorskip("torch")
    before = look()
    monkeypatch.setattr(torch.nn.functional, "silu", torch.nn.functional.gelu)
    monkeypatch.setattr(torch.nn.functional, "acme", torch.nn.functional.gelu, raising=False)
    assert changes(before, look()) == ("the function of torch torch.nn.functional.silu, which is another one now",)
