from __future__ import annotations

import json
import subprocess
import sys

import pytest
import transom
from transom.errors import OutputError
from transom.specs.lock import Lock, read_lock
from transom.training.run_folder import RunFolder


@pytest.fixture
def spec(toy_spec):
    return transom.load_spec(toy_spec())


@pytest.fixture
def begun(tmp_path, spec):
    folder = RunFolder(tmp_path / "run")
    with folder.alone():
        folder.begin(spec, Lock.from_plan(transom.plan(spec)))
    return folder


def test_begin_writes_a_spec_and_a_lock_that_can_be_read_again(begun, spec):
    assert transom.load_spec(begun.spec).to_dict() == spec.to_dict()
    assert read_lock(begun.lock).differences(transom.plan(spec), "exact") == []
    assert sorted(p.name for p in begun.path.iterdir()) == ["checkpoints", "plan.lock.json", "spec.json"]


def test_spec_keeps_a_name_that_is_the_default(tmp_path, toy_spec):
    spec = transom.load_spec(toy_spec() | {"name": "model"})
    folder = RunFolder(tmp_path)
    folder.begin(spec, Lock.from_plan(transom.plan(spec)))
    assert json.loads(folder.spec.read_text())["name"] == "model"
    assert transom.load_spec(folder.spec).name == "model"


def test_a_folder_with_a_run_is_not_free(begun):
    (begun.checkpoints / "step-00000012").mkdir()
    with pytest.raises(OutputError, match="already holds a run, and nothing is overwritten") as caught:
        begun.check_free()
    assert caught.value.path == begun.path
    assert caught.value.available == ("step-00000012",)
    assert caught.value.hint == "--resume, or another folder with --out"


def test_a_folder_with_anything_else_is_not_free(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="is not an empty folder, and nothing is overwritten"):
        RunFolder(tmp_path).check_free()
    with pytest.raises(OutputError, match=r"thesis\.tex is not an empty folder"):
        RunFolder(tmp_path / "thesis.tex").check_free()


def test_an_empty_folder_and_no_folder_are_free(tmp_path):
    (tmp_path / ".spec.json.77.partial").write_text("left by a kill")
    RunFolder(tmp_path).check_free()
    RunFolder(tmp_path / "none").check_free()


def test_only_a_run_can_be_resumed(begun, tmp_path):
    begun.check_resumable()
    with pytest.raises(OutputError, match="none holds no run to resume") as caught:
        RunFolder(tmp_path / "none").check_resumable()
    assert caught.value.hint == "leave out --resume"


def test_two_processes_cannot_write_into_one_folder(begun):
    script = (
        "import pathlib, sys; from transom.training.run_folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).alone():\n"
        "    print('in', flush=True); sys.stdin.readline()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(begun.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OutputError, match="another process is writing a run into"):
            begun.alone().__enter__()
        other.stdin.write("\n")
    with begun.alone():
        pass


def test_what_a_kill_left_is_removed(begun):
    for parent in (begun.path, begun.checkpoints):
        (parent / ".x.77.partial").mkdir()
    with begun.alone():
        assert not list(begun.path.rglob("*.partial"))


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*: Not a directory"):
        RunFolder(tmp_path / "file" / "run").alone().__enter__()


def test_folder_made_for_what_comes_to_nothing_is_removed_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "first")
    with pytest.raises(KeyError), folder.alone():
        raise KeyError("moon")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with pytest.raises(KeyError), folder.alone():
        raise KeyError("moon")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_folder_in_which_something_was_written_stays(tmp_path):
    folder = RunFolder(tmp_path / "runs")
    with pytest.raises(FileNotFoundError), folder.alone():
        folder.spec.write_text("{}") and folder.lock.read_text()
    assert folder.spec.exists()
