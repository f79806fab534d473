from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transom.checkpoint.weight_files import NamedWeights, WeightFiles, indexed_files, open_weights
from transom.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with an index over two files."""
    save_file({"a": TENSORS["a"]}, str(tmp_path / "one.safetensors"))
    save_file({"b": TENSORS["b"]}, str(tmp_path / "two.safetensors"))
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_weights_of_indexed_files_are_those_that_were_saved(folder: Path) -> None:
    weights = open_weights(folder / "model.safetensors.index.json")
    assert list(weights) == ["a", "b"]
    assert len(weights) == 2
    assert "a" in weights
    assert all(torch.equal(weights[name], TENSORS[name]) for name in TENSORS)
    outline = weights.outline("b")
    assert (outline.shape, outline.dtype, outline.is_meta) == ((4,), torch.bfloat16, True)


def test_named_weights_are_found_under_other_names(folder: Path) -> None:
    named = NamedWeights(open_weights(folder / "one.safetensors"), {"x": "a"})
    assert torch.equal(named["x"], TENSORS["a"])
    assert (list(named), len(named), named.outlines()["x"].shape) == (["x"], 1, (2, 3))


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_torch_files_are_read_whether_or_not_the_state_is_nested(tmp_path: Path, nested: str | None) -> None:
    path = tmp_path / "state.pt"
    torch.save(TENSORS if nested is None else {nested: TENSORS, "step": 3}, path)
    weights = WeightFiles([path])
    assert set(weights) == {"a", "b"}
    assert torch.equal(weights["a"], TENSORS["a"])
    assert weights.outline("a").is_meta


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_torch_files_with_code_are_refused_and_nothing_is_executed(tmp_path: Path, capsys) -> None:
    path = tmp_path / "state.bin"
    torch.save({"a": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"cannot read .*state\.bin: ") as caught:
        WeightFiles([path])
    assert "code in files is never executed" in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("x.safetensors", b"short", r"cannot read .*x\.safetensors"),
        ("x.pt", pickle.dumps([1]), r"cannot read .*x\.pt"),
        ("x.npz", b"", "has no ending that says how to read it"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(CheckpointError, match=message) as caught:
        WeightFiles([tmp_path / name])
    assert caught.value.path == tmp_path / name


def test_torch_files_without_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        WeightFiles([tmp_path / "x.pt"])


def test_numbers_that_torch_computes_with_otherwise_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="holds numbers of kind F8_E4M3, which are not read"):
        WeightFiles([tmp_path / "x.safetensors"])


def test_a_name_in_two_files_is_refused(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, str(folder / "three.safetensors"))
    with pytest.raises(CheckpointError, match=r"a is in .*three\.safetensors and in another file"):
        WeightFiles([folder / "one.safetensors", folder / "three.safetensors"])


def test_an_index_whose_files_are_missing_names_them(folder: Path) -> None:
    (folder / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lists 1 files that are not there") as caught:
        indexed_files(folder / "model.safetensors.index.json")
    assert caught.value.failed == ("two.safetensors",)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd"])
def test_an_index_leads_to_no_other_folder(folder: Path, name: str) -> None:
    (folder / "x.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="lists 1 files that are not there"):
        indexed_files(folder / "x.index.json")


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"x\.index\.json is not an index of weights"):
        indexed_files(tmp_path / "x.index.json")
