"""A measured order in the user's config."""

from __future__ import annotations

import pytest
from transom.comparison.auto_order import write_auto_order
from transom.errors import UserConfigError
from transom.registry.user_config import user_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "config" / "transom" / "config.toml"
    monkeypatch.delenv("TRANSOM_CONFIG", raising=False)
    monkeypatch.setattr("transom.comparison.auto_order.config_file", lambda: path)
    monkeypatch.setattr("transom.registry.user_config.config_file", lambda: path)
    return path


def test_write_auto_order_makes_the_file_where_there_is_none(config):
    assert write_auto_order("norm", ["acme/fast", "torch_norm"]) == (config, ())
    assert user_config().order("norm") == ("acme/fast", "torch_norm")


def test_write_auto_order_keeps_everything_else(config):
    config.parent.mkdir(parents=True)
    config.write_text('# mine\n[auto]\nmlp = "mlp" # a comment\nnorm = ["torch_norm"]\n\n[policy]\nstrict = true\n')
    assert write_auto_order("norm", ["acme/fast"]) == (config, ("torch_norm",))
    text = config.read_text()
    assert text == '# mine\n[auto]\nmlp = "mlp" # a comment\nnorm = ["acme/fast"]\n\n[policy]\nstrict = true\n'


def test_write_auto_order_leaves_a_file_alone_that_is_wrong(config):
    config.parent.mkdir(parents=True)
    config.write_text("auto = 3\n")
    with pytest.raises(UserConfigError):
        write_auto_order("norm", ["torch_norm"])
    assert config.read_text() == "auto = 3\n"
