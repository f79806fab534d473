from __future__ import annotations

import json
from pathlib import Path

import pytest
import transom
from transom.errors import CheckpointError, SpecError
from transom.pretrained.spec import read_spec


def test_what_load_spec_reads_is_read_alike(tmp_path: Path, spec: dict) -> None:
    assert read_spec("tiny-llama") == transom.load_spec("tiny-llama")
    assert read_spec(spec) == transom.load_spec(spec)
    (tmp_path / "small.json").write_text(json.dumps(spec))
    assert read_spec(tmp_path / "small.json").config.num_layers == 2
    with pytest.raises(SpecError, match="no spec file and no packaged recipe is named 'nothing'"):
        read_spec("nothing")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in") as caught:
        read_spec(tmp_path)
    assert "one with a config.json" in str(caught.value)
