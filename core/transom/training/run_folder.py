"""The folder of a run: what lies where in it, and that no run writes over another."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from transom.checkpoint.atomic import output_error, remove_partial, write_file
from transom.checkpoint.store import FOLDER, list_checkpoints
from transom.errors import OutputError
from transom.training.metrics import Metrics

if TYPE_CHECKING:
    from transom.specs.lock import Lock
    from transom.specs.spec import ModelSpec

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds a run, or will::

        spec.json         the spec, with the run's own settings
        plan.lock.json    who filled every slot when it began
        metrics.jsonl     one line a logged step
        loss.png          the loss curve
        checkpoints/      step-00000100/ ...
        tensorboard/      where TensorBoard is installed

    Args:
        path: of the folder; it need not exist.
        writes: whether this process writes there; of several ranks that train together, the first alone does.
    """

    path: Path
    writes: bool = True

    @property
    def spec(self) -> Path:
        """The spec, as JSON."""
        return self.path / "spec.json"

    @property
    def lock(self) -> Path:
        """The plan's lock, as JSON."""
        return self.path / "plan.lock.json"

    @property
    def metrics(self) -> Metrics:
        """The rows of metrics."""
        return Metrics(self.path / "metrics.jsonl", writes=self.writes)

    @property
    def curve(self) -> Path:
        """The picture of the loss."""
        return self.path / "loss.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / FOLDER

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path / "tensorboard"

    def check_free(self) -> None:
        """Refuse a folder in which a new run could overwrite something.

        Raises:
            OutputError: it holds a run, or anything else.
        """
        if not self.writes:
            return
        if self.spec.exists():
            newest = [path.name for path in list_checkpoints(self.checkpoints)[-1:]]
            what = f"{self.path} already holds a run, and nothing is overwritten."
            raise OutputError(what, available=newest, hint="--resume, or another folder with --out", path=self.path)
        if self.path.exists() and (not self.path.is_dir() or any(not _partial(p) for p in self.path.iterdir())):
            what = f"{self.path} is not an empty folder, and nothing is overwritten."
            raise OutputError(what, hint="another folder with --out", path=self.path)

    def check_resumable(self) -> None:
        """Refuse a folder in which there is nothing to resume.

        Raises:
            OutputError: it holds no run.
        """
        if not self.spec.is_file():
            raise OutputError(f"{self.path} holds no run to resume.", hint="leave out --resume", path=self.path)

    def begin(self, spec: ModelSpec, lock: Lock) -> None:
        """Write the spec and the lock that the run has from now on; the folder then holds a run.

        Raises:
            OutputError: they cannot be written.
        """
        if not self.writes:
            return
        # The spec comes first: a run that is killed between any two of these lines can be resumed or begun anew.
        write_file(self.spec, _json(spec.to_dict() | {"name": spec.name}))
        write_file(self.lock, _json(lock.to_dict()))
        self._make(self.checkpoints)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process from writing a run here, until this one leaves or is killed.

        A folder that was made for a run that comes to nothing is removed again.

        Raises:
            OutputError: another process is writing here, or the folder cannot be made.
        """
        if not self.writes:
            yield
            return
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self._make(self.path)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_partial(self.path)
            remove_partial(self.checkpoints)
            yield
        except BlockingIOError as error:
            what = f"another process is writing a run into {self.path}."
            raise OutputError(what, hint="wait for it, or another folder with --out", path=self.path) from error
        except BaseException:
            _remove_empty(made)
            raise
        finally:
            os.close(handle)

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(path, error) from error


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the inner ones first, as far as nothing is in them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _json(data: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data)) + b"\n"
