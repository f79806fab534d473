"""`transom doctor`: what is printed of a diagnosis; diagnoses themselves are tested elsewhere."""

from __future__ import annotations

import dataclasses
import json

import pytest
from transom.cli.main import main
from transom.diagnosis import doctor
from transom.diagnosis.doctor import Diagnosis, Examined
from transom.diagnosis.finding import Finding
from transom.diagnosis.probe import Outcome
from transom.diagnosis.promises import Promise
from transom.registry.scan import Entry

ENTRY = Entry("transom.norm", "fast", "acme_norm:Fast", "acme-norm", "1.0", "/site")
PROMISE = Promise("norm", "fast", ("cuda",), ("any",), ("infer",), 0, ("it runs on cuda; this machine has cpu",))
ENVIRONMENT = {
    "python": "3.11.2",
    "executable": "python",
    "platform": "Linux",
    "cpus": 2,
    "transom": "0.1.0",
    "torch": "2.13.0",
    "devices": [{"type": "cpu"}, {"type": "cuda", "name": "a card", "capability": [9, 0]}],
    "config": {"file": "/config.toml", "is_there": False},
    "policy": {"allow": [], "allow_from": "x", "deny": ["evil-*"], "deny_from": "TRANSOM_PLUGINS_DENY", "strict": True},
}
WRONG = Finding("wrong", "acme-norm", "[transom.norm] fast", "it is odd", hint="mend it", traceback="Traceback\n  here")
NOTE = Finding("note", "", "policy", "nothing is denied")


@pytest.fixture
def diagnosed(monkeypatch):
    """Give a function that sets what the doctor finds, and returns the time limit that it was given."""
    given = []

    def set_to(*findings: Finding, forbidden: str | None = None, status="ok"):
        outcomes = () if forbidden else (Outcome(ENTRY, status, seconds=0.25),)
        examined = Examined("acme-norm", "1.0", "/site", forbidden, outcomes, (PROMISE,))
        found = Diagnosis(ENVIRONMENT, (examined,), findings)
        monkeypatch.setattr(doctor, "diagnose", lambda registry, limit: given.append(limit) or found)
        return given

    return set_to


def test_doctor_ends_with_zero_where_nothing_is_wrong(diagnosed, capsys):
    diagnosed()
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:6] == [
        "transom 0.1.0, torch 2.13.0, Python 3.11.2",
        "platform  Linux, 2 CPUs",
        "devices   cpu, cuda (a card, 9.0)",
        "config    /config.toml (none)",
        "deny      evil-* (from TRANSOM_PLUGINS_DENY)",
        "strict    an implementation that fails to import is an error, even in a chain",
    ]
    (row,) = [line.split() for line in out.splitlines() if line.startswith("acme-norm")]
    assert row == ["acme-norm", "1.0", "1", "0", "of", "1", "in", "0.25", "s", "/site"]
    assert out.endswith("\nNothing is wrong.\n")


def test_doctor_ends_with_zero_where_there_are_only_notes(diagnosed, capsys):
    diagnosed(NOTE)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith(
        "\nNotes:\n  transom: nothing is denied (policy)\n\nNothing is wrong; 1 note.\n"
    )


def test_doctor_says_once_what_holds_of_several_places(diagnosed, capsys):
    diagnosed(*(dataclasses.replace(NOTE, where=place) for place in ("here", "there")))
    assert main(["doctor"]) == 0
    assert "\nNotes:\n  transom: nothing is denied (here, there)\n\n" in capsys.readouterr().out


def test_doctor_ends_with_one_where_something_is_wrong(diagnosed, capsys):
    diagnosed(WRONG, NOTE, status="failed")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert (
        "Wrong:\n  acme-norm: it is odd ([transom.norm] fast)\n    Try: mend it\n      Traceback\n        here\n" in out
    )
    assert "  1 failed  " in out
    assert out.endswith("1 thing is wrong; 1 note.\n")


def test_doctor_says_what_is_forbidden(diagnosed, capsys):
    diagnosed(forbidden="policy.deny has 'acme-norm'")
    assert main(["doctor"]) == 0
    assert "  forbidden  " in capsys.readouterr().out


def test_doctor_gives_all_of_it_as_json(diagnosed, capsys):
    given = diagnosed(WRONG)
    assert main(["doctor", "--json", "--timeout", "2.5"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["is_healthy"], data["findings"][0]["what"]) == (False, "it is odd")
    assert data["environment"] == ENVIRONMENT
    assert given == [2.5]


def test_doctor_refuses_a_time_limit_of_nothing(capsys):
    assert main(["doctor", "--timeout", "0"]) == 2
    assert "0" in capsys.readouterr().err
