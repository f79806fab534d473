"""A measured order in the user's config."""

from __future__ import annotations

import pytest
from transom.comparison.auto_order import write_auto_order
from transom.errors import OutputError, UserConfigError
from transom.registry.user_config import user_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "config" / "transom" / "config.toml"
    monkeypatch.delenv("TRANSOM_CONFIG", raising=False)
    monkeypatch.setattr("transom.comparison.auto_order.config_file", lambda: path)
    monkeypatch.setattr("transom.registry.user_config.config_file", lambda: path)
    return path


def test_write_auto_order_makes_the_file_where_there_is_none(config):
    assert write_auto_order("norm", ["acme/fast", "torch_norm"]) == (config, (), {})
    assert user_config().order("norm") == ("acme/fast", "torch_norm")


def test_write_auto_order_keeps_everything_else(config):
    config.parent.mkdir(parents=True)
    config.write_text('# mine\n[auto]\nmlp = "mlp" # a comment\nnorm = ["torch_norm"]\n\n[policy]\nstrict = true\n')
    assert write_auto_order("norm", ["acme/fast"]) == (config, ("torch_norm",), {})
    text = config.read_text()
    assert text == '# mine\n[auto]\nmlp = "mlp" # a comment\nnorm = ["acme/fast"]\n\n[policy]\nstrict = true\n'


def test_write_auto_order_leaves_a_file_alone_that_is_wrong(config):
    config.parent.mkdir(parents=True)
    config.write_text("auto = 3\n")
    with pytest.raises(UserConfigError):
        write_auto_order("norm", ["torch_norm"])
    assert config.read_text() == "auto = 3\n"


def test_write_auto_order_writes_what_a_link_points_to_and_keeps_its_permissions(config, tmp_path):
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("# mine\n")
    kept.chmod(0o600)
    config.parent.mkdir(parents=True)
    config.symlink_to(kept)
    write_auto_order("norm", ["torch_norm"])
    assert config.is_symlink()
    assert kept.read_text() == '# mine\n\n[auto]\nnorm = ["torch_norm"]\n'
    assert kept.stat().st_mode & 0o777 == 0o600


def test_write_auto_order_leaves_a_file_alone_that_says_so_already(config):
    config.parent.mkdir(parents=True)
    text = '[auto]\nnorm = "acme/fast | torch_norm"   # by hand\n'
    config.write_text(text)
    assert write_auto_order("norm", ["acme/fast", "torch_norm"]) == (config, ("acme/fast", "torch_norm"), {})
    assert config.read_text() == text


def test_write_auto_order_tells_which_slots_keep_orders_of_their_own(config):
    config.parent.mkdir(parents=True)
    config.write_text('[auto]\nrow_linear = ["te_linear"]\n')
    written = write_auto_order("linear", ["torch_linear"])
    assert (written.before, written.shadowed) == ((), {"row_linear": ("te_linear",)})


def test_write_auto_order_refuses_what_is_no_file(config):
    config.mkdir(parents=True)
    with pytest.raises(OutputError, match="is no file that an order could be written to") as raised:
        write_auto_order("norm", ["torch_norm"])
    assert raised.value.path == config


def test_write_auto_order_refuses_a_folder_that_cannot_be_made(config):
    config.parent.parent.write_text("a file in the way")
    with pytest.raises(OutputError, match="cannot write") as raised:
        write_auto_order("norm", ["torch_norm"])
    assert raised.value.path == config
