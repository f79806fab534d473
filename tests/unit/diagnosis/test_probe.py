"""Imports in another process; what plugins do to it is in tests/discovery."""

from __future__ import annotations

import pytest
from transom.diagnosis import probe as probing
from transom.diagnosis.fork_server import ForkServer
from transom.diagnosis.probe import probe
from transom.registry.scan import scan

FAST = "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n    def forward(self, x, /): ...\n"


@pytest.fixture
def entries(site):
    """Three entries in modules of their own; the second is whatever a test makes of it."""

    def make(second: str):
        points = {"norm": {name: f"acme_norm.{name}:Fast" for name in ("a", "b", "c")}}
        site.install("acme-norm", points)
        for name, code in {"a": FAST, "b": second, "c": FAST}.items():
            (site.root / "acme_norm" / f"{name}.py").write_text(code)
        return scan([str(site.root)]).group("transom.norm")

    return make


@pytest.fixture(scope="module", params=["started", "forked"])
def server(request):
    """What forks the processes; nothing where each is started afresh."""
    if request.param == "started":
        yield None
        return
    with ForkServer() as server:
        yield server


@pytest.mark.parametrize(
    ("second", "status", "what"),
    [
        (FAST, "ok", ""),
        ("raise OSError('no disk')", "failed", "it cannot be imported: OSError: no disk"),
        ("import os\nos._exit(3)", "died", "it ended the process with 3 while it was imported"),
        ("import os\nos.kill(os.getpid(), 9)", "died", "it ended the process with SIGKILL while it was imported"),
        ("while True: pass", "hung", "importing it takes longer than 3 s"),
    ],
    ids=["ok", "failed", "exit", "killed", "hung"],
)
def test_probe_goes_on_after_one_that_fails(entries, second, status, what, server):
    session = probe(entries(second), limit=3, server=server)
    assert [outcome.status for outcome in session.outcomes] == ["ok", status, "ok"]
    assert [outcome.entry.name for outcome in session.outcomes] == ["a", "b", "c"]
    assert (session.outcomes[1].what, session.error) == (what, None)


def test_probe_keeps_what_an_import_prints_and_how_long_it_takes(entries, server):
    session = probe(entries(FAST + "import time\nprint('hello')\ntime.sleep(0.2)"), server=server)
    assert session.outcomes[1].printed == "hello\n"
    assert session.outcomes[1].seconds >= 0.2
    assert session.outcomes[0].printed == ""


def test_probe_of_nothing_starts_no_process(monkeypatch):
    monkeypatch.setattr(probing.subprocess, "Popen", None)
    assert probe(()).outcomes == ()


def test_probe_says_why_nothing_can_be_had(entries, monkeypatch):
    monkeypatch.setattr(probing, "_BOOT", "raise SystemExit('no transom here')")
    session = probe(entries(FAST))
    assert session.outcomes == ()
    assert session.error == "it ended the process with 1\nno transom here"
