from __future__ import annotations

from pathlib import Path

import pytest
from transom.checkpoint.hugging_face.settings import REQUIRED, Settings, read_settings
from transom.errors import CheckpointError


def test_a_field_that_is_absent_or_null_has_its_default() -> None:
    settings = Settings({"a": None, "b": 0}, "config.json")
    assert (settings.get("a", 3), settings.get("b", 3), settings.get("c", 3), settings.get("c")) == (3, 0, 3, None)
    assert not settings.problems


def test_everything_that_is_wrong_is_told_at_once() -> None:
    settings = Settings({"act": "gelu", "bias": True, "list": [1]}, "there/config.json")
    assert settings.translated("act", {"gelu": "GELU"}, "gelu") == "GELU"
    settings.get("size", REQUIRED)
    settings.translated("act", {"silu": "silu"}, "silu")
    settings.translated("list", {"silu": "silu"}, "silu")
    settings.must_be("bias", False, False, "there are none")
    settings.must_be("other", False, False, "there are none")
    with pytest.raises(CheckpointError, match=r"there/config\.json describes a model that cannot") as caught:
        settings.check()
    assert caught.value.problems == (
        "size is missing",
        "act is 'gelu'; there are silu",
        "list is [1]; there are silu",
        "bias is True: there are none",
    )


def test_read_settings_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = read_settings(tmp_path)
    assert (settings.values, settings.source) == ({"model_type": "llama"}, str(tmp_path / "config.json"))


def test_a_config_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: Is a directory"):
        read_settings(tmp_path)
