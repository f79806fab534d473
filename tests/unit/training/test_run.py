from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transom
from safetensors.torch import load_file
from transom.checkpoint.store import open_checkpoint
from transom.errors import CheckpointError, DataError, OutputError, SpecError, UnknownImplementationError
from transom.training import team
from transom.training.run import train
from transom.training.trainer import Trainer


class Notes:
    """A reporter that keeps the notes."""

    def __init__(self):
        self.notes = []

    def start(self, name, step, steps):
        self.notes.append((name, step, steps))

    def advance(self, step):
        pass

    def row(self, row):
        pass

    def note(self, text):
        self.notes.append(text)

    def stop(self):
        self.notes.append("stop")


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def _weights(result):
    return load_file(result.checkpoint / "weights.safetensors")


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_train_leaves_a_whole_run_in_its_folder(toy_spec, tmp_path):
    notes = Notes()
    result = train(toy_spec(keep_checkpoints=2), out=tmp_path / "run", reporter=notes)
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "checkpoints",
        "loss.png",
        "metrics.jsonl",
        "plan.lock.json",
        "spec.json",
    ]
    assert [p.name for p in sorted((result.folder / "checkpoints").iterdir())] == ["step-00000009", "step-00000012"]
    rows = _rows(result.folder)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8, 12]
    assert (result.steps, result.tokens, result.parameters) == (12, 12 * 4 * 8, 128 * 8 + 8 * 8 + 8)
    assert (result.loss, result.validation_loss) == (rows[-1]["loss"], rows[-1]["validation_loss"])
    assert result.checkpoint.name == "step-00000012"
    assert result.curve == result.folder / "loss.png"
    assert notes.notes == [("toy", 0, 12), f"validation loss of a bigram model: {result.bigram_loss:.4f}", "stop"]


def test_train_learns(toy_spec, tmp_path):
    rows = _rows(train(toy_spec(steps=60, log_every=60, learning_rate=0.03), out=tmp_path / "run").folder)
    first = _rows(train(toy_spec(steps=1), out=tmp_path / "other").folder)[0]
    assert rows[-1]["loss"] < 0.8 * first["loss"]


def test_checkpoint_says_where_the_run_stands(toy_spec, tmp_path):
    result = train(toy_spec(accumulate=2), out=tmp_path / "run", seed=9, use={"model": "toy"})
    manifest = open_checkpoint(result.folder).manifest
    assert (manifest.step, manifest.data.seed, manifest.data.sequences) == (12, 9, 12 * 4 * 2)
    assert manifest.spec["use"] == {"model": "toy"}
    assert manifest.torch == torch.__version__
    assert [node["chosen"] for node in manifest.lock["nodes"]] == [
        node["chosen"] for node in json.loads((result.folder / "plan.lock.json").read_text())["nodes"]
    ]
    assert transom.load_spec(manifest.spec).train.seed == 9


def test_run_depends_on_the_seed_alone(toy_spec, tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    results = [train(toy_spec(), out=tmp_path / str(i), seed=seed) for i, seed in enumerate([3, 3, 4])]
    assert torch.equal(torch.get_rng_state(), state)
    assert _rows(results[0].folder) == _rows(results[1].folder)
    assert _same(_weights(results[0]), _weights(results[1]))
    assert not _same(_weights(results[0]), _weights(results[2]))


def test_run_goes_on_bit_for_bit_when_resumed_after_a_stop(toy_spec, tmp_path, monkeypatch):
    whole = train(toy_spec(), out=tmp_path / "whole")
    train_step = Trainer.train_step

    def interrupted(self):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(toy_spec(), out=tmp_path / "run")
    assert open_checkpoint(tmp_path / "run").manifest.step == 7
    assert (tmp_path / "run" / "loss.png").exists()
    monkeypatch.undo()
    notes = Notes()
    resumed = train(toy_spec(), out=tmp_path / "run", resume=True, reporter=notes)
    assert notes.notes[0] == ("toy", 7, 12)
    assert _rows(resumed.folder) == _rows(whole.folder)
    for name in ("weights", "optimizer", "random"):
        one, other = (load_file(r.checkpoint / f"{name}.safetensors") for r in (whole, resumed))
        assert _same(one, other)


def test_a_killed_run_goes_on_bit_for_bit_from_its_last_checkpoint(tmp_path):
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run([sys.executable, script, tmp_path, "6"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, *killed = json.loads(done.stdout)
    assert whole["outcome"]["last"] == "step-00000012"
    assert len(whole["outcome"]["rows"]) == 12
    assert [end["killed"] for end in killed] == [-signal.SIGKILL] * 6
    assert len({end["saved"] for end in killed}) > 2
    for end in killed:
        assert 0 <= end["logged"] - end["saved"] <= 3
        assert end["resumed"] == 0
        assert end["outcome"] == whole["outcome"]


def test_the_packaged_recipe_goes_on_bit_for_bit_with_dropout(tmp_path):
    data = transom.load_spec("tiny-llama").to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 48, "ffn_hidden_size": 64, "hidden_dropout": 0.1}
    data["max_sequence_length"] = 16
    data["train"] |= {"steps": 6, "batch_size": 2, "checkpoint_every": 3, "keep_checkpoints": 0, "eval_batches": 1}
    whole = train(data, out=tmp_path / "whole")
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step-00000006")
    resumed = train(data, out=half, resume=True)
    assert resumed.checkpoint.name == "step-00000006"
    assert _rows(half) == _rows(whole.folder)
    for name in ("weights", "optimizer", "random"):
        assert _same(*(load_file(r.checkpoint / f"{name}.safetensors") for r in (whole, resumed)))


def test_resume_may_train_longer(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    result = train(toy_spec(), out=tmp_path / "run", resume=True, steps=15)
    assert result.steps == 15
    assert [row["step"] for row in _rows(result.folder)] == list(range(1, 16))
    assert transom.load_spec(result.folder / "spec.json").train.steps == 15


def test_resume_keeps_the_runs_own_settings_and_says_so(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run", steps=5, seed=3)
    notes = Notes()
    result = train(toy_spec(), out=tmp_path / "run", resume=True, reporter=notes)
    assert result.steps == 5
    assert notes.notes[:2] == [
        "resuming: train.seed stays 3, as in the run, not 0",
        "resuming: the run's own spec says 5 steps, and all are done; --steps 12 goes further",
    ]
    train(toy_spec(), out=tmp_path / "run", resume=True, steps=6, reporter=notes)
    assert "resuming: going on to step 6, as --steps says; the run had 5" in notes.notes


def test_resume_of_a_complete_run_changes_no_checkpoint(toy_spec, tmp_path):
    before = train(toy_spec(), out=tmp_path / "run")
    files = _files(before.folder / "checkpoints")
    after = train(toy_spec(), out=tmp_path / "run", resume=True)
    assert _files(before.folder / "checkpoints") == files
    assert (after.loss, after.validation_loss) == (before.loss, before.validation_loss)


def test_resume_works_when_the_metrics_were_deleted(toy_spec, tmp_path):
    before = train(toy_spec(), out=tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    after = train(toy_spec(), out=tmp_path / "run", resume=True)
    assert after.loss is None
    assert after.validation_loss == before.validation_loss


def test_resume_says_when_others_compute(toy_spec, toy_module, tmp_path):
    class Other(toy_module.Toy):
        pass

    train(toy_spec(), out=tmp_path / "run")
    notes = Notes()
    with transom.override("model", "other", Other):
        result = train(toy_spec(), out=tmp_path / "run", resume=True, steps=13, use={"model": "other"}, reporter=notes)
    assert result.steps == 13
    assert any(
        isinstance(note, str) and "other" in note and note.startswith("resuming: the model: ") for note in notes.notes
    )


def test_a_folder_that_holds_a_run_is_refused_and_untouched(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    before = _files(tmp_path / "run")
    with pytest.raises(OutputError, match="already holds a run, and nothing is overwritten"):
        train(toy_spec(), out=tmp_path / "run")
    assert _files(tmp_path / "run") == before


def test_resume_without_a_run_is_refused(toy_spec, tmp_path):
    with pytest.raises(OutputError, match="holds no run to resume"):
        train(toy_spec(), out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_resume_under_another_spec_is_refused_and_changes_nothing(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    before = _files(tmp_path / "run")
    with pytest.raises(CheckpointError, match="the run is of another spec: 1 difference") as caught:
        train(toy_spec(learning_rate=0.5), out=tmp_path / "run", resume=True)
    assert caught.value.differences == ("train.learning_rate is 0.01 in the run, not 0.5",)
    assert _files(tmp_path / "run") == before


def test_resume_with_a_checkpoint_of_another_model_is_refused_and_changes_nothing(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    other = toy_spec()
    other["config"] = other["config"] | {"hidden_size": 16}
    train(other, out=tmp_path / "other")
    source = open_checkpoint(tmp_path / "other").folder
    source.rename(tmp_path / "run" / "checkpoints" / "step-00000099")
    before = _files(tmp_path / "run")
    with pytest.raises(CheckpointError, match="the weights are not this model's: 3 differences"):
        train(toy_spec(), out=tmp_path / "run", resume=True)
    assert _files(tmp_path / "run") == before


def test_resume_with_other_data_is_refused_and_changes_nothing(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    before = _files(tmp_path / "run")
    (tmp_path / "new.txt").write_text("another text altogether. " * 40)
    with pytest.raises(DataError, match="the data is not what the run was trained on") as caught:
        train(toy_spec(), out=tmp_path / "run", resume=True, data=str(tmp_path / "new.txt"), steps=20)
    assert caught.value.expected != caught.value.found
    assert _files(tmp_path / "run") == before


def test_resume_takes_the_same_data_from_elsewhere(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "run")
    moved = (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    assert train(toy_spec(), out=tmp_path / "run", resume=True, data=str(moved), steps=13).steps == 13


def _wrong_name(spec):
    return spec | {"use": {"model": "nobody"}}


def _long_sequence(spec):
    return spec | {"train": spec["train"] | {"sequence_length": 99}}


def _no_data(spec):
    return spec | {"train": spec["train"] | {"data": "nowhere.txt"}}


def _no_tokenizer(spec):
    return spec | {"train": spec["train"] | {"tokenizer": "nowhere.json"}}


def _small_vocabulary(spec):
    return spec | {"vocab_size": 100}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (_wrong_name, UnknownImplementationError, "nobody"),
        (_long_sequence, SpecError, "train.sequence_length is 99"),
        (_no_data, DataError, "no file or folder 'nowhere.txt'"),
        (_no_tokenizer, DataError, "no tokenizer file 'nowhere.json'"),
        (_small_vocabulary, DataError, "holds the token id 122; the model's are 0 to 99"),
    ],
    ids=["unknown name", "too long", "no data", "no tokenizer", "small vocabulary"],
)
def test_what_is_wrong_is_found_before_anything_is_written(toy_spec, tmp_path, change, error, text):
    with pytest.raises(error, match=text):
        train(change(toy_spec()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_disk_stops_the_run_and_keeps_its_last_checkpoint(toy_spec, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = team.save_checkpoint

    def fill_then_save(folder, manifest, *args):
        if manifest.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return save(folder, manifest, *args)

    monkeypatch.setattr(team, "save_checkpoint", fill_then_save)
    try:
        with pytest.raises(OutputError, match=r"cannot write .*step-00000006: File too large"):
            train(toy_spec(), out=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    resumed = train(toy_spec(), out=tmp_path / "run", resume=True)
    assert _same(_weights(resumed), _weights(train(toy_spec(), out=tmp_path / "whole")))


def test_run_without_matplotlib_says_so_and_goes_on(toy_spec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    notes = Notes()
    assert train(toy_spec(), out=tmp_path / "run", reporter=notes).curve is None
    assert notes.notes[-1] == "no loss curve: matplotlib is not installed (pip install 'transom[plot]')"


def test_token_arrays_and_bfloat16_train_too(toy_spec, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(1000, dtype=np.uint16) % 50)
    result = train(toy_spec(precision="bfloat16"), out=tmp_path / "run", data=[str(tmp_path / "ids.npy")])
    assert result.steps == 12


def test_checkpoint_brings_its_tokenizer_along(toy_spec, tmp_path):
    import tokenizers
    from tokenizers import models, pre_tokenizers

    raw = tokenizers.Tokenizer(models.WordLevel({"the": 0, "quick": 1, "[UNK]": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.save(str(tmp_path / "t.json"))
    result = train(toy_spec(tokenizer=str(tmp_path / "t.json")), out=tmp_path / "run")
    checkpoint = open_checkpoint(result.folder)
    assert checkpoint.manifest.tokenizer == "tokenizer.json"
    assert checkpoint.file("tokenizer.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_runs_are_named_after_their_spec_by_default(toy_spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(toy_spec()).folder == Path("runs/toy")


def test_run_begins_with_the_weights_of_another(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "first")
    drawn = train(toy_spec(), out=tmp_path / "drawn", steps=1)
    reporter = Notes()
    changed = toy_spec() | {"config": toy_spec()["config"] | {"hidden_dropout": 0.0}}
    begun = train(changed, out=tmp_path / "begun", steps=1, init_from=tmp_path / "first", reporter=reporter)
    assert begun.validation_loss < drawn.validation_loss - 0.05
    assert reporter.notes[:2] == [
        f"beginning with the weights in {tmp_path / 'first'}",
        "config.hidden_dropout is 0.0; the weights were made for 0.2",
    ]
    spec = json.loads((tmp_path / "begun" / "spec.json").read_text())
    assert spec["train"]["init_from"] == str(tmp_path / "first")


def test_run_of_a_folder_goes_on_with_its_model_and_resumes_by_itself(toy_spec, tmp_path):
    first = train(toy_spec(), out=tmp_path / "first")
    begun = train(first.folder, out=tmp_path / "begun", steps=2)
    shutil.rmtree(first.folder)
    resumed = train(begun.folder, out=tmp_path / "begun", steps=4, resume=True)
    whole = train(toy_spec(steps=4), out=tmp_path / "whole")
    assert (begun.steps, resumed.steps) == (2, 4)
    assert resumed.validation_loss < whole.validation_loss - 0.05


def test_run_killed_before_its_first_checkpoint_begins_with_the_weights_again(toy_spec, tmp_path):
    first = train(toy_spec(), out=tmp_path / "first")
    once = train(first.folder, out=tmp_path / "once", steps=2)
    shutil.copytree(once.folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints")
    again = train(first.folder, out=tmp_path / "again", steps=2, resume=True)
    assert _same(_weights(again), _weights(once))


def test_run_that_cannot_begin_with_the_weights_writes_nothing(toy_spec, tmp_path):
    train(toy_spec(), out=tmp_path / "first", steps=1)
    wider = toy_spec() | {"config": toy_spec()["config"] | {"hidden_size": 16}}
    with pytest.raises(CheckpointError, match="the weights are not this model's: 3 differences") as caught:
        train(wider, out=tmp_path / "wider", init_from=tmp_path / "first")
    assert "embedding.weight has shape [128, 8]; the model's is [128, 16]" in caught.value.problems
    assert not (tmp_path / "wider").exists()
