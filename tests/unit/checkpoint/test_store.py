from __future__ import annotations

import json
import resource
import threading
from pathlib import Path

import msgspec
import pytest
import torch
from transom.checkpoint import store
from transom.checkpoint.store import (
    digest,
    find_checkpoint,
    list_checkpoints,
    open_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from transom.errors import CheckpointError, OutputError


@pytest.fixture
def saved(tmp_path, trained, manifest):
    """Give the folder of the checkpoint of step 3."""
    return save_checkpoint(tmp_path, manifest, *trained, files={"tokenizer.json": b"{}"})


def test_checkpoint_is_a_folder_of_readable_files(saved, manifest):
    assert saved.name == "step-00000003"
    assert {p.name for p in saved.iterdir()} == {
        "checkpoint.json",
        "weights.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "tokenizer.json",
    }
    assert {p.stat().st_mode for p in saved.iterdir()} == {(saved / "checkpoint.json").stat().st_mode}
    found = open_checkpoint(saved).manifest
    assert (found.step, found.spec, found.data) == (3, manifest.spec, manifest.data)
    assert found.tied == {"output.weight": "embedding.weight"}
    assert json.loads((saved / "checkpoint.json").read_text())["format"] == 1


def test_training_goes_on_bit_for_bit(saved, trained, tools):
    make, train_steps = tools
    checkpoint = open_checkpoint(saved)
    model, optimizer = make(seed=5)
    checkpoint.load_training(*trained)
    expected = train_steps(*trained, 4)
    checkpoint.load_training(model, optimizer)
    assert train_steps(model, optimizer, 4) == expected
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in trained[0].state_dict().items())


def test_load_model_needs_only_the_weights(saved, trained, tools):
    (saved / "optimizer.safetensors").unlink()
    model, _ = tools[0](seed=5)
    open_checkpoint(saved).load_model(model)
    assert torch.equal(model.middle.weight, trained[0].middle.weight)


def test_fill_model_compares_the_file_once_while_it_copies(saved, trained, tools, monkeypatch):
    compared: list[tuple[Path, bool]] = []

    def noted(path: Path) -> str:
        compared.append((path, threading.current_thread() is threading.main_thread()))
        return digest(path)

    monkeypatch.setattr(store, "digest", noted)
    model, _ = tools[0](seed=5)
    open_checkpoint(saved).fill_model(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in trained[0].state_dict().items())
    assert compared == [(saved / "weights.safetensors", False)]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p.unlink(), "weights.safetensors is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), "weights.safetensors has .* bytes; .* were written"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"!"), "weights.safetensors is not as it was written"),
        (lambda p: p.write_bytes(b"!" * p.stat().st_size), "weights.safetensors is not as it was written"),
    ],
    ids=["missing", "truncated", "altered", "unreadable"],
)
def test_fill_model_refuses_damaged_weights(saved, tools, damage, text):
    damage(saved / "weights.safetensors")
    with pytest.raises(CheckpointError, match=text) as caught:
        open_checkpoint(saved).fill_model(tools[0](seed=5)[0])
    assert caught.value.path == saved / "weights.safetensors"


def test_fill_model_refuses_another_models_weights(saved, tools):
    with pytest.raises(CheckpointError, match="the weights are not this model's: 4 differences"):
        open_checkpoint(saved).fill_model(tools[0](width=8)[0])


def test_save_refuses_a_step_that_has_a_checkpoint(saved, trained, manifest):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(OutputError, match="step-00000003 exists already"):
        save_checkpoint(saved.parent, manifest, *trained)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_full_disk_leaves_the_previous_checkpoint_and_nothing_else(saved, trained, manifest):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*step-00000004: File too large"):
            save_checkpoint(saved.parent, msgspec.structs.replace(manifest, step=4), *trained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(saved.parent.iterdir()) == [saved]
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors"])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p.unlink(), "{} is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), "{} has .* bytes; .* were written"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"!"), "{} is not as it was written"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_damaged_files_are_refused_and_nothing_is_loaded(saved, tools, name, damage, text):
    damage(saved / name)
    model, optimizer = tools[0](seed=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=text.format(name)) as caught:
        open_checkpoint(saved).load_training(model, optimizer)
    assert caught.value.path == saved / name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), state)


def test_another_models_checkpoint_is_refused_with_every_difference(saved, tools):
    model, optimizer = tools[0](width=8)
    with pytest.raises(CheckpointError, match="the weights are not this model's: 4 differences") as caught:
        open_checkpoint(saved).load_training(model, optimizer)
    assert "embedding.weight has shape [11, 6]; the model's is [11, 8]" in caught.value.problems
    assert str(saved / "weights.safetensors") in str(caught.value)


def test_checkpoints_are_listed_by_step_and_only_when_complete(tmp_path):
    for name in ["step-00000010", "step-00000009", "step-123456789", ".step-00000011.7.partial", "step-x", "step-1"]:
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").write_text("a file")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000009", "step-00000010", "step-123456789"]
    assert list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize(("keep", "left"), [(0, 4), (1, 1), (3, 3), (9, 4)])
def test_prune_keeps_the_newest(tmp_path, keep, left):
    names = [f"step-0000000{i}" for i in range(4)]
    for name in names:
        (tmp_path / name).mkdir()
    prune_checkpoints(tmp_path, keep)
    assert sorted(p.name for p in tmp_path.iterdir()) == names[4 - left :]


def test_find_checkpoint_takes_a_checkpoint_their_folder_or_a_run(tmp_path, trained, manifest):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    old = save_checkpoint(run / "checkpoints", manifest, *trained)
    new = save_checkpoint(run / "checkpoints", msgspec.structs.replace(manifest, step=20), *trained)
    assert find_checkpoint(old) == old
    assert find_checkpoint(run / "checkpoints") == new
    assert find_checkpoint(str(run)) == new


def test_find_checkpoint_says_so_when_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*") as caught:
        find_checkpoint(tmp_path)
    assert caught.value.folder == tmp_path
    with pytest.raises(CheckpointError, match="no folder nowhere"):
        find_checkpoint(Path("nowhere"))
