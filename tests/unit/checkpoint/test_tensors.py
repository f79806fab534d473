from __future__ import annotations

import errno

import pytest
import torch
from transom.checkpoint.tensors import read_tensors, write_tensors
from transom.errors import CheckpointError


def test_tensors_read_back_bit_for_bit_whatever_their_strides(tmp_path):
    big = torch.randn(4, 6)
    tensors = {
        "whole": big,
        "transposed": big.t(),
        "slice": big[1:3],
        "overlapping": big[2:],
        "half": big.to(torch.bfloat16),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(3.0, requires_grad=True),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "f", tensors)
    found = read_tensors(tmp_path / "f")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in tensors.items()}


def test_write_tensors_gives_the_systems_reason_when_it_cannot_write(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        write_tensors(tmp_path / "no" / "f", {"a": torch.zeros(1)})
    assert caught.value.errno == errno.ENOENT


def test_read_tensors_says_so_when_there_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        read_tensors(tmp_path / "f")


@pytest.mark.parametrize("keep", [0, 7, 30, -1], ids=["empty", "no header", "half a header", "one byte short"])
def test_read_tensors_refuses_a_truncated_file(tmp_path, keep):
    path = tmp_path / "f"
    write_tensors(path, {"a": torch.zeros(10)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cannot read .*: Error while deserializing") as caught:
        read_tensors(path)
    assert caught.value.path == path


def test_read_tensors_never_unpickles(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "f")
    with pytest.raises(CheckpointError, match="Error while deserializing"):
        read_tensors(tmp_path / "f")
