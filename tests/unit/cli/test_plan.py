"""`transom plan`."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from torch import nn
from transom import override, plan
from transom.cli.main import main
from transom.specs.page import render_page
from transom.specs.render import render_plan
from transom.specs.world import World


def test_plan_prints_the_plan(capsys):
    assert main(["plan", "tiny-llama"]) == 0
    assert capsys.readouterr().out == f"{plan('tiny-llama')}\n"


def test_plan_gives_every_node_as_json(capsys):
    main(["plan", "tiny-llama", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data == plan("tiny-llama").to_dict()
    assert {"layers.0.self_attention.core_attention", "layers.3.mlp.linear_fc2"} <= {n["path"] for n in data["nodes"]}


def test_plan_hands_its_options_on(capsys):
    args = ["--use", "core_attention=dot_product", "--use", "layers.1.mlp=transom/mlp", "--mode", "infer"]
    main(["plan", "tiny-llama", *args, "--dtype", "bfloat16", "--device", "meta", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert (data["device"], data["dtype"], data["mode"]) == ("meta", "bfloat16", "infer")
    asked = {node["path"]: node["asked"] for node in data["nodes"]}
    assert asked["layers.0.self_attention.core_attention"] == ["dot_product"]
    assert (asked["layers.0.mlp"], asked["layers.1.mlp"]) == (["mlp"], ["transom/mlp"])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["tiny-lama"], "SpecError: no spec file and no packaged recipe is named 'tiny-lama'."),
        (["missing.yaml"], "SpecError: no spec file 'missing.yaml'."),
        (["tiny-llama", "--use", "nrom=torch_norm"], "UnknownSlotError: no slot is named 'nrom'."),
        (["tiny-llama", "--use", "norm=torch_nrm"], "UnknownImplementationError: no norm is named 'torch_nrm'."),
        (
            ["tiny-llama", "--use", "layers.9.mlp=mlp"],
            "SpecError: nothing is at 'layers.9.mlp', so use.layers.9.mlp would have no effect.",
        ),
        (["tiny-llama", "--dtype", "float23"], "SpecError: parameters cannot have the dtype 'float23'."),
    ],
)
def test_plan_tells_what_is_wrong(capsys, args, error):
    assert main(["plan", *args]) == 2
    assert capsys.readouterr().err.startswith(error)


@pytest.mark.parametrize("use", ["nrom=torch_norm", "norm=torch_nrm", "norm=a | a", "layers.9.mlp=mlp"])
def test_plan_quotes_the_option_that_is_wrong(capsys, use):
    assert main(["plan", "tiny-llama", "--use", use]) == 2
    assert f"\n  Asked by:   --use {use}\n" in capsys.readouterr().err


def test_plan_shows_what_each_place_costs_when_asked(capsys):
    main(["plan", "tiny-llama", "--totals"])
    assert capsys.readouterr().out == f"{render_plan(plan('tiny-llama'), with_columns=True)}\n"


class OwnMLP(nn.Module):
    def __init__(self, config, submodules, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
        super().__init__()
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, per_token_scale=None):
        return self.mix(hidden_states), None


def test_plan_measures_what_requests_do_not_tell(capsys):
    with override("mlp", "own", OwnMLP):
        main(["plan", "tiny-llama", "--use", "mlp=own", "--json"])
    data = json.loads(capsys.readouterr().out)
    (node,) = [node for node in data["nodes"] if node["path"] == "layers.0.mlp"]
    assert node["cost"] == {
        "parameters": 192 * 192 + 192,
        "flops": 2 * 192 * 192,
        "kv_bytes": 0,
        "is_complete": True,
    }


def test_plan_shows_what_each_of_many_ranks_has(capsys):
    assert main(["plan", "llama-405b-shape", "--world", "tp=8,pp=16,dp=32"]) == 0
    out = capsys.readouterr().out
    assert "4096 ranks: tensor-parallel 8, pipeline 16, data-parallel 32" in out
    assert main(["plan", "llama-405b-shape", "--world", "tp=8,pp=16,dp=32", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["world"] == asdict(World(tp=8, pp=16, dp=32))
    assert data["step"]["passes"] == 16
    assert data["cut"] == {
        "pipeline_model_parallel_size": 16,
        "account_for_embedding_in_pipeline_split": True,
        "account_for_loss_in_pipeline_split": True,
    }
    assert [stage["layers"] for stage in data["stages"]][:2] == [[[0, 7]], [[7, 15]]]
    assert data["stages"][1]["parameters"] == 8 * (16384 * (18432 + 16384 + 3 * 53248) // 8 + 2 * 16384)
    assert data["stages"][1]["shapes"]["layers.7.mlp.linear_fc1.weight"] == {
        "computes_with": [2, 6656, 16384],
        "holds": [2, 6656, 512],
    }
    said = {(each["axis"], each["what"]): each["calls"] for each in data["stages"][1]["communication"]}
    assert said["tp", "row linears"] == 16 * 2 * 8
    assert data["stages"][1]["activations"] > data["stages"][2]["activations"]


@pytest.mark.parametrize("arguments", [["--mode", "infer", "--world", "tp=2"], ["--world", "tp=2,zero=0"]], ids=str)
def test_plan_tells_no_exchanges_of_what_does_not_train_so(capsys, arguments):
    assert main(["plan", "tiny-llama", *arguments]) == 0
    assert "In a step" not in capsys.readouterr().out
    assert main(["plan", "tiny-llama", *arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "step" not in data
    assert "communication" not in data["stages"][0]


def test_plan_refuses_a_world_that_does_not_fit(capsys):
    assert main(["plan", "tiny-llama", "--world", "pp=9"]) == 2
    assert "do not divide over 9 pipeline chunks.\n  Asked by:   --world\n" in capsys.readouterr().err


def test_plan_draws_a_page(tmp_path, capsys):
    path = tmp_path / "plan.html"
    assert main(["plan", "tiny-llama", "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"Drew tiny-llama on {path}.\n"
    assert path.read_text(encoding="utf-8") == render_page(plan("tiny-llama"))
    assert main(["plan", "tiny-llama", "--html", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny-llama"
    assert main(["plan", "tiny-llama", "--html", str(tmp_path / "no" / "plan.html")]) == 2
    assert capsys.readouterr().err.startswith("OutputError: cannot write ")


def test_plan_says_in_which_line_of_a_file_a_name_stands_that_nothing_has(tmp_path, capsys):
    spec = tmp_path / "small.yaml"
    spec.write_text(
        "vocab_size: 8\nmax_sequence_length: 8\n"
        "config: {num_layers: 1, hidden_size: 8, num_attention_heads: 1}\nuse:\n  norm: trch_norm\n"
    )
    assert main(["plan", str(spec)]) == 2
    assert "small.yaml, line 5\n" in capsys.readouterr().err
