"""`transom convert`, and what else takes a folder of Hugging Face's form."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch
import transom
from transom.cli.convert import parse_size
from transom.cli.main import main

SPEC = {
    "name": "small",
    "vocab_size": 13,
    "max_sequence_length": 16,
    "config": {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "ffn_hidden_size": 24,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "position_embedding_type": "rope",
    },
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Give a state dict of Megatron-core's form, with the spec beside it."""
    model = transom.build(SPEC, seed=0)
    stem = ("layers.", "final_layernorm.")
    named = {f"decoder.{name}" if name.startswith(stem) else name: t for name, t in model.state_dict().items()}
    torch.save(named, tmp_path / "state.pt")
    (tmp_path / "small.json").write_text(json.dumps(SPEC))
    return tmp_path / "state.pt"


def test_convert_says_what_it_wrote(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--from", "megatron", "--spec", str(tmp_path / "small.json")]
    assert main(["convert", str(state), str(tmp_path / "theirs"), "--to", "hf", *arguments]) == 0
    assert capsys.readouterr().out == (
        f"Wrote a folder for transformers (llama) in {tmp_path / 'theirs'}: 21 tensors, 19,392 bytes.\n"
        "It has no tokenizer: transom generate needs one to read prompts.\n"
    )
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--dtype", "bfloat16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["form"], told["tensors"], told["bytes"]) == ("transom", 15, 9696)
    assert told["tokenizer"] is None
    assert told["files"] == ["checkpoint.json", "hugging_face_config.json", "weights.safetensors"]


def test_generate_refuses_a_converted_model_without_a_tokenizer_as_it_refuses_the_folder(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", "megatron", "--spec", str(tmp_path / "small.json"), "--to", "hf"]
    assert main(["convert", str(state), str(tmp_path / "theirs"), *arguments]) == 0
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.count("It has no tokenizer") == 2
    for folder in ("theirs", "ours"):
        assert main(["generate", str(tmp_path / folder), "--prompt", "a"]) == 2
        assert f"{tmp_path / folder} has no tokenizer.json; no other kind" in capsys.readouterr().err


def test_plan_and_lock_take_the_folder_of_a_model(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from", "megatron", "--spec", str(tmp_path / "small.json"), "--to", "hf"]
    assert main(["convert", str(state), str(tmp_path / "theirs"), *arguments]) == 0
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    for folder in ("theirs", "ours"):
        assert main(["plan", str(tmp_path / folder), "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["name"] == "theirs"
        assert plan["totals"]["parameters"]
    assert main(["lock", str(tmp_path / "theirs"), "--out", str(tmp_path / "a.lock.json")]) == 0


def test_what_goes_wrong_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "made")]) == 2
    assert "CheckpointError: no folder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "made"), "--max-shard-size", "big"]) == 2
    assert "'big' is no size; 5GB and 200MB are." in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2kb", 2000), ("1.5 GB", 1_500_000_000), ("3T", 3 * 10**12)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1", "1 PB", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        parse_size(text)
