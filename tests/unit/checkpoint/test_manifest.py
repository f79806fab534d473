from __future__ import annotations

import json

import msgspec
import pytest
from transom.checkpoint.manifest import MANIFEST, read_manifest
from transom.errors import CheckpointError


def test_manifest_reads_back_what_was_written(tmp_path, manifest):
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    assert read_manifest(tmp_path) == manifest


def test_read_manifest_says_so_when_there_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*") as caught:
        read_manifest(tmp_path)
    assert caught.value.folder == tmp_path
    assert "the folder of a run, or one of its checkpoints" in str(caught.value)


def test_read_manifest_says_so_when_it_cannot_be_read(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*Is a directory"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data | {"format": 2}, "Invalid enum value 2"),
        (lambda data: data | {"step": "3"}, "Expected `int`, got `str`"),
        (lambda data: data | {"more": 1}, "unknown field `more`"),
        (lambda data: {k: v for k, v in data.items() if k != "spec"}, "missing required field `spec`"),
    ],
    ids=["other format", "wrong type", "unknown field", "missing field"],
)
def test_read_manifest_refuses_when_damaged(tmp_path, manifest, change, text):
    (tmp_path / MANIFEST).write_text(json.dumps(change(msgspec.to_builtins(manifest))))
    with pytest.raises(CheckpointError, match=f"checkpoint.json is damaged: .*{text}"):
        read_manifest(tmp_path)


def test_read_manifest_refuses_when_truncated(tmp_path, manifest):
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest)[:-9])
    with pytest.raises(CheckpointError, match="is damaged: Input data was truncated"):
        read_manifest(tmp_path)
