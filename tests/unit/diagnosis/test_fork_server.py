"""Processes forked from one that has imported torch; what they find is in test_probe.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from transom.diagnosis import fork_server as forking
from transom.diagnosis.fork_server import ForkServer, fork_server
from transom.diagnosis.probe import probe
from transom.registry.scan import scan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

TELLS = """
import json, os, sys, threading
print(json.dumps([os.getpid(), os.getcwd(), os.environ.get("MOON"), "torch" in sys.modules, threading.active_count()]))
class Fast:
    def __init__(self, config, hidden_size, eps): ...
    def forward(self, x, /): ...
"""


@pytest.fixture(scope="module")
def server():
    """A server that all tests share that leave it alive."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def tell(site):
    """Give a function that imports a module by a server and returns what it printed."""
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, code=TELLS)

    def tell(server):
        (outcome,) = probe(scan([str(site.root)]).group("transom.norm"), server=server).outcomes
        assert outcome.status == "ok", outcome
        return json.loads(outcome.printed)

    return tell


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(is_true) -> None:
    for _ in range(600):
        if is_true():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_forked_process_has_torch_and_begins_as_the_one_that_asks_is_now(server, tell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOON", "full")
    first, *rest = tell(server)
    monkeypatch.delenv("MOON")
    second, *later = tell(server)
    assert rest == [str(tmp_path), "full", True, 1]
    assert later == [str(tmp_path), None, True, 1]
    assert len({first, second, server._process.pid, os.getpid()}) == 4


def test_server_serves_several_threads_at_once(server, tell):
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: tell(server), range(8)))
    assert len({pid for pid, *_ in told}) == 8


def test_forked_process_that_takes_too_long_is_ended_with_what_it_started(server, tell, tmp_path):
    tell(server)  # from here on it has torch
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "acme_slow.py").write_text(code)
    fields = {"group": "transom.norm", "name": "slow", "value": "acme_slow:Norm", "distribution": "acme"}
    entry = {**fields, "version": "1", "location": ""}
    path = [str(tmp_path), *sys.path]
    request = {"entries": [entry], "out": str(tmp_path / "out"), "path": path, "limit": 600, "with_state": False}
    with (tmp_path / "stderr").open("wb") as stderr, pytest.raises(TimeoutError):
        server.run(request, tmp_path, stderr.fileno(), 5.0)
    for pid in pids.read_text().split():
        _wait_until(lambda pid=pid: not _is_alive(int(pid)))


def test_probe_starts_processes_where_the_server_is_gone(tell):
    server = ForkServer()
    server._process.kill()
    pid, *_ = tell(server)
    server.close()
    assert pid != os.getpid()
    pid, _, _, has_torch, _ = tell(server)
    assert pid != os.getpid()
    assert not has_torch


def test_server_that_cannot_import_torch_runs_nothing(tell, monkeypatch):
    monkeypatch.setattr(forking, "_BOOT", "raise SystemExit(1)")
    with ForkServer() as server:
        *_, has_torch, _ = tell(server)
    assert not has_torch


def test_server_ends_with_the_process_that_made_it(tmp_path):
    code = (
        "import os; from transom.diagnosis.fork_server import ForkServer\n"
        "print(ForkServer()._process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _wait_until(lambda: not _is_alive(int(done.stdout)))


def test_fork_server_is_none_where_forks_are_not_safe(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with fork_server() as server:
        assert server is None
