"""`transom bench`."""

from __future__ import annotations

import json

import pytest
import torch
import transom
from torch import nn
from transom.cli.main import main
from transom.pretrained.convert import convert

QUICK = ["--rounds", "1", "--shapes", "1x4,2x2"]


def test_bench_prints_a_table_for_each_shape(capsys):
    assert main(["bench", "tiny-llama", "--slot", "norm", "--impl", "torch_norm", *QUICK]) == 0
    out = capsys.readouterr().out
    assert out.startswith("norm at layers.0.input_layernorm, float32 on cpu\n\n1 x 4 tokens\nimplementation")
    assert "2 x 2 tokens" in out
    assert "Fastest first: torch_norm" in out


def test_bench_names_who_cannot_serve(capsys):
    assert main(["bench", "tiny-llama", "--impl", "dot_product,torch_flex", *QUICK]) == 0
    assert "Cannot serve:\n  torch_flex: torch's flex_attention has no backward pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [["--impl", "dot_product,torch_dot_product"], ["--impl", "dot_product", "--impl", "torch_dot_product"]]
)
def test_bench_takes_implementations_by_commas_and_one_by_one(given, capsys):
    assert main(["bench", "tiny-llama", *given, "--rounds", "1", "--shapes", "1x2", "--json"]) == 0
    (shape,) = json.loads(capsys.readouterr().out)["shapes"]
    assert [each["implementation"] for each in shape["outcomes"]] == ["dot_product", "torch_dot_product"]


def test_bench_gives_json(capsys):
    assert main(["bench", "tiny-llama", "--slot", "norm", "--impl", "torch_norm", "--json", *QUICK]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["order"] == ["torch_norm"]
    assert [(each["rows"], each["tokens"]) for each in data["shapes"]] == [(1, 4), (2, 2)]
    assert data["shapes"][0]["outcomes"][0]["output_error"] == 0.0


def test_bench_writes_the_order_only_when_it_is_told_to(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    config.write_text("")
    monkeypatch.setenv("TRANSOM_CONFIG", str(config))
    arguments = ["bench", "tiny-llama", "--slot", "norm", "--impl", "torch_norm", *QUICK]
    assert main(arguments) == 0
    assert config.read_text() == ""
    assert main([*arguments, "--write-auto"]) == 0
    assert 'norm = ["torch_norm"]' in config.read_text()
    assert "auto now stands for torch_norm in norm" in capsys.readouterr().out


class Negative(nn.Module):
    """A norm of the wrong sign."""

    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x, /):
        return -nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def test_bench_never_writes_who_computes_something_else(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    config.write_text("# mine\n")
    monkeypatch.setenv("TRANSOM_CONFIG", str(config))
    arguments = ["bench", "tiny-llama", "--slot", "norm", "--impl", "torch_norm,negative", *QUICK]
    with transom.override("norm", "negative", Negative):
        assert main([*arguments, "--write-auto"]) == 0
        out = capsys.readouterr().out
        assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "\nComputes something else:\n  negative: its outputs differ by 2.0e+00, where 2e-05 is allowed; its" in out
    assert config.read_text() == '# mine\n\n[auto]\nnorm = ["torch_norm"]\n'
    assert data["order"] == ["torch_norm"]
    assert list(data["mistakes"]) == ["negative"]
    assert data["shapes"][0]["outcomes"][1]["mistake"] == data["mistakes"]["negative"].rpartition(", at")[0]


def test_bench_says_where_another_order_stays(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    config.write_text('[auto]\ncolumn_linear = ["te_linear"]\nlinear = ["torch_linear"]\n')
    monkeypatch.setenv("TRANSOM_CONFIG", str(config))
    arguments = ["bench", "tiny-llama", "--slot", "linear", "--impl", "torch_linear", "--write-auto", *QUICK]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"auto stands for torch_linear in linear already: {config}\n" in out
    assert "but not in column_linear, which has an order of its own there: te_linear\n" in out


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--plot", "norm.docx"], "no picture that can be drawn"),
        (["--plot", "no-such-folder/norm.png"], "its folder is not there"),
        (["--write-auto"], "/dev/null is no file that an order could be written to"),
        (["--impl", "auto"], "'auto' is not one implementation's name"),
    ],
)
def test_bench_refuses_before_it_measures(given, what, monkeypatch, capsys):
    monkeypatch.setattr("transom.comparison.compare.interleaved", None)
    monkeypatch.setenv("TRANSOM_CONFIG", "/dev/null")
    assert main(["bench", "tiny-llama", "--slot", "norm", *given, *QUICK]) == 2
    assert what in capsys.readouterr().err


def test_bench_takes_the_folder_of_a_model(tmp_path, capsys):
    spec = transom.load_spec("tiny-llama").to_dict()
    spec["config"] |= {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_query_groups": 2}
    spec["config"] |= {"ffn_hidden_size": 16, "kv_channels": 8}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    states = transom.build(spec, seed=0).state_dict()
    stem = ("layers.", "final_layernorm.")
    torch.save({f"decoder.{n}" if n.startswith(stem) else n: t for n, t in states.items()}, tmp_path / "state.pt")
    convert(tmp_path / "state.pt", tmp_path / "theirs", form="megatron", spec=tmp_path / "spec.json", to="hf")
    arguments = ["--slot", "norm", "--impl", "torch_norm", "--json", *QUICK]
    assert main(["bench", str(tmp_path / "theirs"), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "layers.0.input_layernorm"


def test_bench_draws_a_picture(tmp_path):
    path = tmp_path / "norm.png"
    assert main(["bench", "tiny-llama", "--slot", "norm", "--impl", "torch_norm", "--plot", str(path), *QUICK]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shapes", ["8", "8x", "axb", "1x4;2x2"])
def test_bench_refuses_shapes_that_are_none(shapes, capsys):
    assert main(["bench", "tiny-llama", "--shapes", shapes]) == 2
    assert "is not ROWSxTOKENS" in capsys.readouterr().err
