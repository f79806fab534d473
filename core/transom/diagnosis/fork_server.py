"""A process that has imported torch and forks one for every probe: importing torch takes longer than most plugins.

`multiprocessing` has a server that forks, too; but it runs the caller's main module again in each of its processes, and
gives them the environment that it was started with.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

__all__ = ["ForkServer", "fork_server", "serve"]

_REQUEST = "request"
_BOOT = """
import json, sys
descriptor, with_state, sys.path[:] = json.loads(sys.argv[1])
from transom.diagnosis.fork_server import serve
serve(descriptor, with_state=with_state)
"""


@contextmanager
def fork_server(*, with_state: bool = False) -> Iterator[ForkServer | None]:
    """Give a server for as long as the context lasts; `None` where processes cannot be forked safely.

    Args:
        with_state: the processes will look for changes of torch's state, for which more of torch is imported.

    Example:
        ```python
        from transom.diagnosis.fork_server import fork_server
        from transom.diagnosis.probe import probe

        with fork_server() as server:
            assert probe((), server=server).outcomes == ()
        ```
    """
    if sys.platform != "linux":  # elsewhere, libraries that torch loads do not survive a fork
        yield None
        return
    with ForkServer(with_state=with_state) as server:
        yield server


class ForkServer:
    """A process that forks others on request, from several threads at once; it ends with the process that made it.

    Args:
        with_state: import what `transom.diagnosis.probe_child.import_torch` does, and not torch alone.
    """

    def __init__(self, *, with_state: bool = False) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptor = theirs.fileno()
            settings = json.dumps([descriptor, with_state, sys.path])
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", _BOOT, settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )

    def run(self, request: dict[str, Any], folder: Path, stderr: int, limit: float) -> int | None:
        """Run `transom.diagnosis.probe_child.main` in a process of its own, which begins as this one is now.

        Args:
            request: what it gets.
            folder: where the request can be left.
            stderr: descriptor of a file for its standard error.
            limit: seconds that it may take.

        Returns:
            its exit code, -n after signal n; `None` = the server can run nothing, or did not outlive it.

        Raises:
            TimeoutError: it took longer, and was ended.
        """
        everything = {**request, "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109 - a name
        (folder / _REQUEST).write_text(json.dumps(everything), encoding="utf-8")
        answer, theirs = os.pipe()
        try:
            socket.send_fds(self._requests, [os.fsencode(folder)], [theirs, stderr])
        except OSError:
            os.close(answer)
            return None
        finally:
            os.close(theirs)
        with os.fdopen(answer, "rb", buffering=0) as answers:
            return _exit_code(answers.fileno(), limit)

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _exit_code(answers: int, limit: float) -> int | None:
    """Read the id of the process that watches over the probe, and then how the probe ended."""
    told, end = b"", time.monotonic() + limit
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    while told.count(b"\n") < 2:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if told:
                os.killpg(int(told), signal.SIGKILL)
            raise TimeoutError
        some = os.read(answers, 100)
        if not some:
            return None
        told += some
    return int(told.split()[1])


def serve(descriptor: int, *, with_state: bool) -> None:
    """Fork a process for every request until nobody can ask any more.

    Args:
        descriptor: of the socket that requests come from.
        with_state: see `ForkServer`.
    """
    from transom.diagnosis.probe_child import import_torch

    import_torch(with_state=with_state)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    with socket.socket(fileno=descriptor) as requests:
        while True:
            folder, descriptors, *_ = socket.recv_fds(requests, 4096, 2)
            if not folder:
                return
            if _fork() == 0:
                requests.close()
                _watch(Path(os.fsdecode(folder)), *descriptors)
            for each in descriptors:
                os.close(each)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those of numpy's kernels, which know forks
        return os.fork()


def _watch(folder: Path, answer: int, stderr: int) -> Never:
    """Run a request in another process, and tell how that ended; what it leaves behind is ended too."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.write(answer, f"{os.getpid()}\n".encode())
        worker = _fork()
        if worker == 0:
            os.close(answer)
            _work(folder, stderr)
        _, status = os.waitpid(worker, 0)
        os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(1)


def _work(folder: Path, stderr: int) -> Never:
    """Become what a fresh process of the one that asks would be, and do what it asks."""
    from transom.diagnosis.probe_child import main

    code = 1
    try:
        os.dup2(stderr, 2)
        request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:] = request["path"]
        importlib.invalidate_caches()
        main(request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
