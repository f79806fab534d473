"""`transom plan`."""

from __future__ import annotations

import json

import pytest
from transom import plan
from transom.cli.main import main


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
        (["tiny-llama", "--dtype", "float23"], "ConfigError: "),
    ],
)
def test_plan_tells_what_is_wrong(capsys, args, error):
    assert main(["plan", *args]) == 2
    assert capsys.readouterr().err.startswith(error)
