"""Conversions: what goes along, what is refused, that they are whole or absent, and how little memory they take."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from safetensors.torch import load_file, save_file
from transom.checkpoint.store import open_checkpoint
from transom.errors import CheckpointError, OutputError
from transom.pretrained.convert import convert
from transom.pretrained.spec import read_spec
from transom.pretrained.tokenizer import SpecialIds, special_ids, tokenizer_of

DATA = Path(__file__).parents[2] / "data"
TOKENS = torch.tensor([[1, 2, 3, 4, 5]])
LLAMA: dict[str, Any] = {
    "name": "small",
    "vocab_size": 17,
    "max_sequence_length": 16,
    "config": {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 24,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "init_method_std": 0.3,
    },
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Give a model of random weights, in evaluation."""
    return transom.build(LLAMA, mode="infer", seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> Path:
    """Give the model as a folder of Hugging Face's form, with a tokenizer's files beside its weights."""
    root = tmp_path_factory.mktemp("llama")
    spec = root / "spec.json"
    spec.write_text(json.dumps(LLAMA))
    state = {f"module.{megatron(name)}": tensor for name, tensor in model.state_dict().items()}
    save_file(state, str(root / "state.safetensors"))
    convert(root / "state.safetensors", root / "folder", form="megatron", spec=spec, to="hf")
    (root / "folder" / "tokenizer.json").write_text('{"a": 1}')
    (root / "folder" / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (root / "folder" / "README.md").write_text("not a part of the model")
    return root / "folder"


def megatron(name: str) -> str:
    """What a GPT model of Megatron-core calls a weight."""
    return f"decoder.{name}" if name.startswith(("layers.", "final_layernorm.")) else name


def same(found: torch.nn.Module, model: torch.nn.Module) -> bool:
    mine, other = found.state_dict(), model.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_folder_becomes_a_checkpoint_and_a_folder_again(folder: Path, model: Any, tmp_path: Path) -> None:
    made = convert(folder, tmp_path / "ours")
    assert (made.form, made.tensors, made.bytes) == ("transom", len(model.state_dict()), 4 * count(model))
    assert set(made.files) == {
        "checkpoint.json",
        "weights.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "hugging_face_config.json",
    }
    assert same(transom.from_pretrained(tmp_path / "ours"), model)
    again = convert(tmp_path / "ours", tmp_path / "theirs")
    assert again.form == "llama"
    assert set(again.files) == {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    before, after = (load_file(str(path / "model.safetensors")) for path in (folder, tmp_path / "theirs"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "theirs" / "tokenizer.json").read_text() == '{"a": 1}'


def count(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def test_a_checkpoint_says_what_it_is_made_of(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours")
    manifest = open_checkpoint(tmp_path / "ours").manifest
    assert (manifest.step, manifest.data, manifest.tokenizer) == (0, None, "tokenizer.json")
    assert read_spec(tmp_path / "ours").config == read_spec(folder).config
    assert special_ids(tmp_path / "ours") == special_ids(folder) == SpecialIds(eos=(3, 4), start=None)


@pytest.mark.parametrize("recorded", [None, "bytes"], ids=["none", "bytes, as was once written for none"])
def test_a_checkpoint_of_a_folder_without_a_tokenizer_has_none(folder: Path, tmp_path: Path, recorded: Any) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    made = convert(bare, tmp_path / "ours")
    manifest = tmp_path / "ours" / "checkpoint.json"
    data = json.loads(manifest.read_text())
    assert (made.tokenizer, data["tokenizer"]) == (None, None)
    manifest.write_text(json.dumps(data | {"tokenizer": recorded}))
    with pytest.raises(CheckpointError, match=r"ours has no tokenizer\.json; no other kind of") as caught:
        tokenizer_of(tmp_path / "ours")
    assert caught.value.hint.endswith("of transformers writes it, and transom convert takes it along")
    assert caught.value.folder == tmp_path / "ours"


def test_a_model_of_bytes_stays_one_among_checkpoints(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours")
    manifest = tmp_path / "ours" / "checkpoint.json"
    data = json.loads(manifest.read_text())
    del data["files"]["hugging_face_config.json"], data["files"]["tokenizer.json"]
    manifest.write_text(json.dumps(data | {"tokenizer": "bytes"}))
    assert convert(tmp_path / "ours", tmp_path / "half", to="transom", dtype="bfloat16").tokenizer == "bytes"
    assert tokenizer_of(tmp_path / "half").encode("a").tolist() == [97]
    assert convert(tmp_path / "half", tmp_path / "theirs").tokenizer is None


def test_a_dtype_is_of_all_weights_and_of_the_spec(folder: Path, model: Any, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours", dtype="bfloat16")
    loaded = transom.from_pretrained(tmp_path / "ours")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    assert all(torch.equal(t, model.state_dict()[name].bfloat16()) for name, t in loaded.state_dict().items())
    convert(tmp_path / "ours", tmp_path / "theirs", dtype="float16")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["torch_dtype"] == "float16"
    assert {t.dtype for t in load_file(str(tmp_path / "theirs" / "model.safetensors")).values()} == {torch.float16}


def test_a_run_becomes_a_folder(tmp_path: Path) -> None:
    from transom.training.run import train

    (tmp_path / "text.txt").write_text("all work and no play " * 20)
    spec = LLAMA | {"vocab_size": 256, "train": {"steps": 1, "batch_size": 2, "eval_batches": 1}}
    trained = train(spec, out=tmp_path / "run", data=str(tmp_path / "text.txt"))
    convert(trained.folder, tmp_path / "theirs")
    theirs = transom.from_pretrained(tmp_path / "theirs")
    assert same(theirs, transom.from_pretrained(trained.folder))


@pytest.mark.parametrize("target", ["folder", "file"])
def test_nothing_is_overwritten(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists already, and nothing is overwritten"):
        convert(folder, tmp_path / target)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("to", ["hf", "transom"])
def test_a_conversion_that_fails_leaves_nothing(folder: Path, tmp_path: Path, to: Any, monkeypatch: Any) -> None:
    from transom.checkpoint import weight_writer

    written = []

    def fail(file: Any, tensor: Any, outline: Any) -> None:
        written.append(outline)
        if len(written) > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_writer, "_write", fail)
    with pytest.raises(OutputError, match=r"cannot write .*made: No space left on device"):
        convert(folder, tmp_path / "made", to=to)
    assert list(tmp_path.iterdir()) == []


def test_what_no_family_computes_is_refused_before_anything_is_written(tmp_path: Path, model: Any) -> None:
    spec = LLAMA | {"config": LLAMA["config"] | {"softmax_type": "off-by-one"}}
    save_file({megatron(name): t for name, t in model.state_dict().items()}, str(tmp_path / "state.safetensors"))
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    arguments = {"form": "megatron", "spec": tmp_path / "spec.json"}
    with pytest.raises(CheckpointError, match="softmax_type is off-by-one, and would be vanilla"):
        convert(tmp_path / "state.safetensors", tmp_path / "made", to="hf", **arguments)
    assert not (tmp_path / "made").exists()
    assert convert(tmp_path / "state.safetensors", tmp_path / "made", **arguments).form == "transom"
    with pytest.raises(CheckpointError, match="softmax_type is off-by-one, and would be vanilla") as caught:
        convert(tmp_path / "made", tmp_path / "theirs")
    assert caught.value.asked_by == str(tmp_path / "made")


@pytest.mark.parametrize(
    ("form", "spec", "message"),
    [
        ("megatron", None, "has no spec, and none is given"),
        ("hf", LLAMA, "has a spec of its own, and another is given"),
    ],
)
def test_a_spec_is_for_state_dicts_and_needed_there(
    folder: Path, tmp_path: Path, form: Any, spec: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "made", form=form, spec=spec)


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        convert(tmp_path, tmp_path / "made")
    with pytest.raises(CheckpointError, match="no weights in"):
        convert(tmp_path, tmp_path / "made", form="torchtune", spec=LLAMA)
    with pytest.raises(CheckpointError, match=r"no file .*x\.pt"):
        convert(tmp_path / "x.pt", tmp_path / "made", form="torchtune", spec=LLAMA)


def test_a_checkpoint_whose_weights_are_anothers_is_refused(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours")
    manifest = json.loads((tmp_path / "ours" / "checkpoint.json").read_text())
    manifest["spec"]["config"]["num_layers"] = 3
    (tmp_path / "ours" / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not those that the checkpoint's spec describes: 6 differences"):
        convert(tmp_path / "ours", tmp_path / "made")


# State dicts of other libraries.


def torchtune_spec(**config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a measured case of torchtune, and the spec of its model."""
    case = torch.load(DATA / "torchtune" / "a_mha.pt", weights_only=True)
    c = case["config"]
    fields = {
        "num_layers": c["num_layers"],
        "hidden_size": c["embed_dim"],
        "num_attention_heads": c["num_heads"],
        "num_query_groups": c["num_kv_heads"],
        "ffn_hidden_size": c["hidden_dim"],
        "layernorm_epsilon": c["norm_eps"],
        "rotary_base": float(c["rope_base"]),
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    spec = {"vocab_size": c["vocab_size"], "max_sequence_length": c["max_seq_len"], "config": fields | config}
    return case, spec


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
def test_torchtunes_state_computes_what_was_measured(tmp_path: Path, interleaved: bool) -> None:
    case, spec = torchtune_spec(rotary_interleaved=interleaved)
    torch.save(case["state_dict"], tmp_path / "state.pt")
    convert(tmp_path / "state.pt", tmp_path / "made", form="torchtune", spec=spec)
    got = transom.from_pretrained(tmp_path / "made")(case["tokens"])
    torch.testing.assert_close(got, case["logits"], atol=1e-5, rtol=1e-5)


def test_torchtunes_state_becomes_a_folder_for_transformers(tmp_path: Path) -> None:
    case, spec = torchtune_spec()
    torch.save(case["state_dict"], tmp_path / "state.pt")
    assert convert(tmp_path / "state.pt", tmp_path / "made", form="torchtune", spec=spec, to="hf").form == "llama"
    got = transom.from_pretrained(tmp_path / "made")(case["tokens"])
    torch.testing.assert_close(got, case["logits"], atol=1e-5, rtol=1e-5)


def test_torchtunes_state_of_another_model_is_told_by_its_own_names(tmp_path: Path) -> None:
    case, spec = torchtune_spec()
    del case["state_dict"]["layers.1.mlp.w3.weight"]
    torch.save(case["state_dict"] | {"layers.0.attn.q_norm.scale": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="as torchtune has them: 2 differences") as caught:
        convert(tmp_path / "state.pt", tmp_path / "made", form="torchtune", spec=spec)
    assert caught.value.problems == (
        "layers.0.attn.q_norm.scale has no place in the model",
        "layers.1.mlp.w3.weight is missing",
    )


def test_a_spec_that_torchtune_has_no_model_for_is_refused(tmp_path: Path) -> None:
    case, spec = torchtune_spec(add_qkv_bias=True, qk_layernorm=True)
    torch.save(case["state_dict"], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is no model that torchtune builds as Llama") as caught:
        convert(tmp_path / "state.pt", tmp_path / "made", form="torchtune", spec=spec)
    assert caught.value.problems == (
        "add_qkv_bias is True, and is False there",
        "qk_layernorm is True, and is False there",
    )


def stacked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack the layers' weights, as distributed checkpoints do."""
    found = {name: t for name, t in state.items() if "layers." not in name}
    for name in state:
        if name.startswith("decoder.layers.0.") and not name.endswith("_extra_state"):
            rest = name.removeprefix("decoder.layers.0.")
            found[f"decoder.layers.{rest}"] = torch.stack([state[f"decoder.layers.{i}.{rest}"] for i in range(2)])
    return found


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hold norms with the linears after them, as TransformerEngine's modules do."""
    places = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    found = dict(state)
    for name in state:
        for place, other in places.items():
            if place in name:
                found[name.replace(place, other)] = found.pop(name)
    return found | {"decoder.layers.0.mlp.linear_fc1._extra_state": torch.ones(3, dtype=torch.uint8)}


FORMS = {
    "local": lambda state: state,
    "wrapped": lambda state: {f"module.module.{name}": t for name, t in state.items()},
    "fused": fused,
    "stacked": stacked,
    "fused and stacked": lambda state: stacked(fused(state)),
}


@pytest.mark.parametrize("form", FORMS)
def test_megatrons_state_is_read_in_all_its_forms(tmp_path: Path, model: Any, form: str) -> None:
    state = FORMS[form]({megatron(name): tensor for name, tensor in model.state_dict().items()})
    torch.save({"model": state, "iteration": 7}, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "made", form="megatron", spec=LLAMA)
    assert same(transom.from_pretrained(tmp_path / "made"), model)


def test_megatrons_t5_computes_what_was_measured(tmp_path: Path) -> None:
    case = torch.load(DATA / "megatron" / "t5_learned.pt", weights_only=True)
    config = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    spec = {"vocab_size": 60, "max_sequence_length": 16, "model": "t5", "config": config, "masks": ["padding", "keep"]}
    torch.save(case["state_dict"], tmp_path / "t5.pt")
    convert(tmp_path / "t5.pt", tmp_path / "made", form="megatron", spec=spec)
    inputs = case["inputs"]
    masks = [~inputs[f"{name}_attn_mask"] for name in ("encoder", "decoder", "encoder_decoder")]  # True = masked there
    model = transom.from_pretrained(tmp_path / "made")
    got = model(inputs["encoder_input_ids"], inputs["decoder_input_ids"], *masks)
    torch.testing.assert_close(got, case["outputs"]["logits"], atol=1e-5, rtol=1e-5)


MEASURE = """
import sys, threading
from transom.pretrained.convert import convert

def own():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

convert(sys.argv[1], sys.argv[3])  # what is imported, and kept, is there now
before, seen, done = own(), [], threading.Event()

def watch():
    while not done.wait(0.001):
        seen.append(own())

watcher = threading.Thread(target=watch)
watcher.start()
convert(sys.argv[2], sys.argv[4], dtype="bfloat16")
done.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel must tell a process's memory")
def test_a_conversion_takes_less_memory_than_the_model(folder: Path, tmp_path: Path) -> None:
    """What a process holds itself, mapped files aside, grows by a few tensors and not by the model."""
    large = tmp_path / "large"
    shutil.copytree(folder, large)
    settings = json.loads((large / "config.json").read_text())
    settings |= {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 30}
    (large / "config.json").write_text(json.dumps(settings))
    (large / "model.safetensors").unlink()
    spec = read_spec(large)
    outlines = transom.build(spec, device="meta").state_dict()
    state = {megatron(name): torch.zeros(t.shape) for name, t in outlines.items()}
    size = sum(t.nbytes for t in state.values()) / 2**20
    save_file(state, str(tmp_path / "large.safetensors"))
    convert(tmp_path / "large.safetensors", tmp_path / "theirs", form="megatron", spec=spec, to="hf")
    arguments = [str(folder), str(tmp_path / "theirs"), str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    assert size > 60
    assert float(done.stdout) < size / 4
