"""Files and folders that appear on disk complete, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transom.errors import OutputError

__all__ = ["new_folder", "output_error", "remove_folder", "remove_partial", "write_file"]

_PARTIAL = ".partial"


def output_error(path: Path, error: OSError) -> OutputError:
    """Say that a path could not be written, and what would help.

    Args:
        path: the file or folder that was to be written.
        error: the operating system's answer.

    Returns:
        the error to raise, from `error`.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space, or raise the limit" if full else "another folder, or its permissions"
    return OutputError(f"cannot write {path}: {error.strerror or error}.", hint=hint, path=path, errno=error.errno)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete and on the disk.

    Args:
        target: the folder to make; its parent exists, it does not.

    Yields:
        a temporary folder beside it, to be filled.

    Raises:
        OutputError: it exists already, or cannot be written; nothing of it remains.
    """
    if target.exists():
        raise OutputError(f"{target} exists already, and nothing is overwritten.", path=target)
    partial = _partial(target)
    try:
        partial.mkdir()
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush_to_disk(path)
        partial.rename(target)
        _flush_to_disk(target.parent)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, write: bytes | Callable[[Path], None]) -> None:
    """Write a file, or replace one, in a single step.

    Args:
        path: the file.
        write: its contents, or a function that writes them to the path it is given.

    Raises:
        OutputError: it cannot be written; what was there before is untouched.
    """
    partial = _partial(path)
    try:
        if callable(write):
            write(partial)
        else:
            partial.write_bytes(write)
        _flush_to_disk(partial)
        partial.replace(path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder such that it is never seen with a part of its files missing."""
    partial = _partial(path)
    try:
        path.rename(partial)
        shutil.rmtree(partial)
    except OSError as error:
        raise output_error(path, error) from error


def remove_partial(parent: Path) -> None:
    """Delete what processes that were killed left half-written in a folder. No other process may write there."""
    for path in parent.glob(f".*{_PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}{_PARTIAL}")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
