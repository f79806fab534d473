"""Import plugins in another process, with a time limit: a hang, an exit or an abort is reported, never suffered."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from transom.diagnosis.fork_server import ForkServer
from transom.registry.scan import Entry

__all__ = ["LIMIT", "Outcome", "Session", "probe"]

LIMIT = 60.0
"""Seconds that one import may take."""

_START = 120.0  # seconds for the process itself, torch included
_BOOT = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from transom.diagnosis.probe_child import main
main(request)
"""


@dataclass(frozen=True)
class Outcome:
    """What came of importing one entry point.

    Args:
        entry: which one.
        status: ``"ok"``; ``"failed"``: it raised; ``"hung"``: it took longer than the limit; ``"died"``: it ended the
            process.
        what: how it failed, a sentence without its full stop; empty when it did not.
        traceback: where.
        complaints: what is wrong with what was imported.
        changes: what it changed of the state that all code in a process shares.
        printed: what it printed.
        seconds: how long it took.
    """

    entry: Entry
    status: Literal["ok", "failed", "hung", "died"]
    what: str = ""
    traceback: str | None = None
    complaints: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    printed: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Session:
    """What came of a probe.

    Args:
        outcomes: one for every entry, in order.
        machine: what torch says of itself and of the devices, where that was asked and could be had.
        error: why nothing could be had at all, `None` = all went well.
    """

    outcomes: tuple[Outcome, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def probe(
    entries: Sequence[Entry],
    *,
    limit: float = LIMIT,
    with_state: bool = False,
    with_devices: bool = False,
    ask: Collection[str] = (),
    server: ForkServer | None = None,
) -> Session:
    """Import entries one after another in another process; after one that ends it, the others go on in a new one.

    Args:
        entries: of any ``transom.*`` group whose values are objects.
        limit: seconds for each.
        with_state: look for changes of what all code shares, such as torch's default dtype.
        with_devices: ask torch for the devices too.
        ask: refs of hooks that are asked what is wrong (``transom_doctor``).
        server: forks the processes; `None`, or where it cannot = each is started afresh, and imports torch itself.
    """
    outcomes: list[Outcome] = []
    machine: dict[str, Any] = {}
    settings = {"limit": limit, "with_state": with_state, "devices": with_devices, "ask": list(ask)}
    while len(outcomes) < len(entries) or (with_devices and not machine):
        pending = entries[len(outcomes) :]
        facts, end, errors = _run(pending, settings, server)
        if not facts:
            return Session(tuple(outcomes), machine, f"{end}\n{errors}".strip())
        machine, told = machine or facts[0], facts[1:]
        done = [fact for fact in told if fact != "started"]
        outcomes += [_outcome(entry, fact) for entry, fact in zip(pending, done, strict=False)]
        if len(done) < len(pending):
            outcomes.append(_stopped(pending[len(done)], end, errors, limit))
    return Session(tuple(outcomes), machine)


def _run(entries: Sequence[Entry], settings: dict[str, Any], server: ForkServer | None) -> tuple[list[Any], str, str]:
    """Run one process; give what it told, how it ended, and the end of what it wrote to stderr."""
    with tempfile.TemporaryDirectory(prefix="transom-") as folder:
        out, errors = Path(folder) / "outcomes", Path(folder) / "stderr"
        request = {**settings, "entries": [asdict(entry) for entry in entries], "out": str(out), "path": sys.path}
        end = _end(request, Path(folder), errors, server, _START + settings["limit"] * (len(entries) + 1))
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
        text = errors.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in lines], end, text


def _end(request: dict[str, Any], folder: Path, errors: Path, server: ForkServer | None, limit: float) -> str:
    """Run one process and say how it ended."""
    try:
        code = None
        if server is not None:
            with errors.open("wb") as stderr:
                code = server.run(request, folder, stderr.fileno(), limit)
        if code is None:
            Path(request["out"]).unlink(missing_ok=True)
            with errors.open("wb") as stderr:
                code = _start(request, stderr, limit)
    except (subprocess.TimeoutExpired, TimeoutError):
        return "it was stopped after the time limit"
    return (
        f"it ended the process with {signal.Signals(-code).name}" if code < 0 else f"it ended the process with {code}"
    )


def _start(request: dict[str, Any], stderr: Any, limit: float) -> int:
    """Start a process; give its exit code."""
    command = [sys.executable, "-X", "faulthandler", "-c", _BOOT]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
    )
    try:
        process.communicate(json.dumps(request).encode(), timeout=limit)
    except BrokenPipeError:  # it ended before it read what to do
        process.wait()
    finally:
        _kill(process)
    return process.returncode


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _outcome(entry: Entry, fact: dict[str, Any]) -> Outcome:
    error = fact.get("error")
    return Outcome(
        entry,
        "ok" if error is None else "failed",
        "" if error is None else f"it cannot be imported: {error}",
        fact.get("traceback"),
        tuple(fact.get("complaints", ())),
        tuple(fact["changes"]),
        fact["printed"],
        fact["seconds"],
    )


def _stopped(entry: Entry, end: str, errors: str, limit: float) -> Outcome:
    """Give the outcome of an entry that ended its process."""
    hung = re.search(r"^Timeout \(\d+:\d\d:\d\d(\.\d+)?\)!$", errors, re.MULTILINE)
    if hung or "time limit" in end:
        where = errors[hung.start() :] if hung else errors
        return Outcome(entry, "hung", f"importing it takes longer than {limit:g} s", where[-4000:], seconds=limit)
    return Outcome(entry, "died", f"{end} while it was imported", errors[-4000:] or None)
