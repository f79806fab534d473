from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transom.checkpoint.weight_writer import write_shards, write_weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def outlines(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def test_safetensors_reads_what_is_written_of_every_dtype(tmp_path: Path) -> None:
    tensors = {str(dtype): (10 * torch.randn(3, 5)).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "odd": torch.ones(3, dtype=torch.bool)}
    write_weights(tmp_path / "x.safetensors", outlines(tensors), tensors)
    found = load_file(str(tmp_path / "x.safetensors"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in tensors.items()}


def test_tensors_of_any_strides_are_cast_to_their_outlines(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6)
    wanted = torch.empty(6, 4, dtype=torch.bfloat16, device="meta")
    write_weights(tmp_path / "x.safetensors", {"t": wanted}, {"t": tensor.T})
    assert torch.equal(load_file(str(tmp_path / "x.safetensors"))["t"], tensor.T.bfloat16())


def test_shards_hold_all_and_none_is_larger_than_asked(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(10) for i in range(7)} | {"large": torch.randn(100)}
    write_shards(tmp_path, "model", outlines(tensors), tensors, most_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
    assert index["metadata"]["total_size"] == 680
    for path in files:
        held = load_file(str(path))
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 100
        assert all(index["weight_map"][name] == path.name for name in held)
        assert all(torch.equal(held[name], tensors[name]) for name in held)
    assert index["weight_map"].keys() == tensors.keys()


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    write_shards(tmp_path, "model", outlines({"t": torch.ones(2)}), {"t": torch.ones(2)}, most_bytes=8)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_are_made_one_after_another(tmp_path: Path) -> None:
    asked: list[str] = []

    class OneByOne(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            asked.append(name)
            return torch.full((2,), float(len(asked)))

    names = ["a", "b", "c"]
    write_weights(tmp_path / "x.safetensors", {n: torch.empty(2, device="meta") for n in names}, OneByOne())
    assert asked == names
    assert load_file(str(tmp_path / "x.safetensors"))["c"].tolist() == [3.0, 3.0]


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        write_weights(tmp_path / "missing" / "x.safetensors", {}, {})
