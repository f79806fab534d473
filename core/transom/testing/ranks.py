"""Processes in one process group, kept for all jobs of a run: starting them costs more than what they do."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from transom.testing.case import ConformanceError

__all__ = ["SIZE", "Ranks", "ranks", "serve"]

SIZE = 2
_TIMEOUT = 300.0  # seconds for a job


class Ranks:
    """Processes that run the same function, each with its own rank, over gloo.

    Functions and arguments are pickled: functions must be a module's own.

    Args:
        path: where they import from.
        size: how many there are.
    """

    def __init__(self, path: tuple[str, ...], size: int = SIZE) -> None:
        store = Path(tempfile.mkdtemp(prefix="transom-ranks-")) / "store"
        program = "from transom.testing.ranks import serve; serve()"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank), str(size), str(store)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(size)
        ]
        atexit.register(self.close)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(*arguments, group)`` on every rank and give what each returns.

        Raises:
            ConformanceError: a rank raised, with its traceback, or did not answer in time.
        """
        watch = threading.Timer(_TIMEOUT, self.close)
        watch.start()
        try:
            for process in self.processes:
                assert process.stdin is not None
                pickle.dump((function, arguments), process.stdin)
                process.stdin.flush()
            answers = [pickle.load(process.stdout) for process in self.processes]  # type: ignore[arg-type]
        except (EOFError, OSError) as error:
            self.close()
            raise ConformanceError(f"a process ended, or did not answer within {_TIMEOUT:.0f} seconds") from error
        finally:
            watch.cancel()
        failures = [f"rank {rank}:\n{answer}" for rank, (ok, answer) in enumerate(answers) if not ok]
        if failures:
            raise ConformanceError("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        _ranks.cache_clear()
        for process in self.processes:
            process.kill()
            process.communicate()  # wait, and close the pipes


def ranks(size: int = SIZE) -> Ranks:
    """Give this process's ranks, started when first asked for; they import from where this process does now."""
    return _ranks(tuple(filter(None, sys.path)), size)


@cache
def _ranks(path: tuple[str, ...], size: int) -> Ranks:
    return Ranks(path, size)


def serve() -> None:
    """Run jobs as one of the ranks, until there is nobody left to ask for one."""
    rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not get between the answers
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, function(*arguments, dist.group.WORLD)
        except ConformanceError as error:
            answer = False, str(error)
        except Exception:  # the next job may go better
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()
