"""Processes like those of ``python FILE ARGUMENTS``, forked from one that has imported what the files import.

Most of a short run's time is that of imports. That processes which import for themselves do the same is held by the
tests that start torchrun.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["transom.training.run", "transom.cli.main", "torch._dynamo"])


class Forked:
    """A process that runs a file, with as much of `subprocess.Popen` as tests of ranks need.

    Args:
        file: that it runs.
        arguments: on its command line.
        environment: of it; packages are found as in this process, those on its ``PYTHONPATH`` first.
        directory: where it runs; `None` = where this process does.
    """

    def __init__(
        self, file: str, *arguments: str, environment: Mapping[str, str], directory: Path | None = None
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forked-"))
        streams = [str(self._folder / name) for name in ("out", "errors")]
        settings = (file, arguments, dict(environment), str(directory or Path.cwd()), streams)
        process = _FORKS.Process(target=_run, args=settings)
        process.start()
        self._process = process
        self._said: tuple[str, str] | None = None

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait until it has ended; give what it wrote. `kill` afterwards lets go of that."""
        if self._said is None:
            self._process.join(timeout)
            if self._process.exitcode is None:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            self._said = (self._folder / "out").read_text(), (self._folder / "errors").read_text()
        return self._said

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _run(
    file: str, arguments: tuple[str, ...], environment: dict[str, str], directory: str, streams: list[str]
) -> None:
    for descriptor, path in enumerate(streams, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    torch.set_num_threads(1)
    sys.argv = [file, *arguments]
    sys.path[:0] = [str(Path(file).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    runpy.run_path(file, run_name="__main__")
