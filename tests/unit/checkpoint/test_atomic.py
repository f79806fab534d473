from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest
from transom.checkpoint import atomic
from transom.checkpoint.atomic import new_folder, output_error, remove_folder, remove_partial, write_file
from transom.errors import OutputError


@pytest.fixture
def small_files():
    """Let no file of this process grow beyond 10 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_new_folder_appears_with_its_files_when_complete(tmp_path):
    with new_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a").exists()
        assert partial.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "1"


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_new_folder_leaves_nothing_when_interrupted(tmp_path, exception):
    def fill():
        with new_folder(tmp_path / "a") as partial:
            (partial / "x").write_text("1")
            raise exception

    with pytest.raises(exception):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_refuses_a_name_that_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="exists already, and nothing is overwritten") as caught:
        new_folder(tmp_path / "a").__enter__()
    assert caught.value.path == tmp_path / "a"


def test_new_folder_leaves_nothing_when_the_disk_is_full(tmp_path, small_files):
    with pytest.raises(OutputError, match="File too large") as caught, new_folder(tmp_path / "a") as partial:
        (partial / "x").write_bytes(b"0" * 20_000)
    assert caught.value.errno == errno.EFBIG
    assert "free some space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_new_folder_syncs_files_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    events = []
    flush = atomic._flush_to_disk
    monkeypatch.setattr(
        atomic, "_flush_to_disk", lambda p: (events.append((p.name, (tmp_path / "a").exists())), flush(p))
    )
    with new_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
    assert events == [("x", False), (partial.name, False), (tmp_path.name, True)]


def test_write_file_replaces_in_one_step(tmp_path):
    path = tmp_path / "f"
    write_file(path, b"old")
    write_file(path, lambda partial: partial.write_bytes(b"new") and None)
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_write_file_keeps_the_old_one_when_the_disk_is_full(tmp_path, small_files):
    path = tmp_path / "f"
    write_file(path, b"old")
    with pytest.raises(OutputError, match=r"cannot write .*f: File too large"):
        write_file(path, b"0" * 20_000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_write_file_says_so_when_the_folder_is_missing(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory") as caught:
        write_file(tmp_path / "no" / "f", b"")
    assert "another folder, or its permissions" in str(caught.value)


def test_output_error_speaks_of_space_only_when_it_lacks(tmp_path):
    assert "free some space" in output_error(tmp_path, OSError(errno.ENOSPC, "No space left on device")).hint
    assert "space" not in output_error(tmp_path, PermissionError(errno.EACCES, "Permission denied")).hint


def test_remove_folder_deletes_it(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_remove_folder_says_so_when_it_cannot(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        remove_folder(tmp_path / "a")


def test_remove_partial_deletes_what_a_killed_process_left(tmp_path):
    script = (
        "import os, pathlib, signal, sys; from transom.checkpoint import atomic\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "with atomic.new_folder(p / 'a') as f:\n"
        "    (f / 'x').write_text('1')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    (tmp_path / f".f.{os.getpid()}.partial").write_text("")
    (tmp_path / "kept").write_text("")
    assert len(list(tmp_path.iterdir())) == 3
    remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
