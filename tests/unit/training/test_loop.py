from __future__ import annotations

import os
import signal

import pytest
import torch
from transom.errors import TransomError
from transom.specs.train_spec import TrainSpec
from transom.training.loop import TrainingLoop
from transom.training.progress import SilentReporter
from transom.training.run_folder import RunFolder
from transom.training.team import Alone
from transom.training.trainer import StepResult


class Trainer:
    """Does steps of loss 1/step; at chosen steps something happens."""

    tokens_per_step = 100
    team, model = Alone(), torch.nn.Identity()

    def __init__(self, step=0, happens=None, **settings):
        self.settings = TrainSpec(**settings)
        self.step, self.happens = step, happens or {}

    def train_step(self):
        self.step += 1
        loss = self.happens.get(self.step, lambda: None)()
        return StepResult(torch.tensor(1 / self.step if loss is None else loss), torch.tensor(2.0), 0.5)

    def validate(self):
        return 10.0 + self.step


class Recorder:
    """Collects what is reported, saved and sent to TensorBoard, in order."""

    def __init__(self, tmp_path, trainer):
        self.trainer, self.folder, self.saved, self.events = trainer, RunFolder(tmp_path), [], []
        self.reporter = SilentReporter()

    def append(self, row):
        self.events.append(row["step"])

    def save(self):
        self.saved.append((self.trainer.step, len(self.folder.metrics.rows())))
        return self.folder.path

    def run(self):
        TrainingLoop(self.trainer, self.folder, self.save, self.reporter, self).run()
        return self.folder.metrics.rows()


def test_loop_logs_looks_and_saves_when_due(tmp_path):
    recorder = Recorder(tmp_path, Trainer(steps=11, log_every=2, eval_every=3, checkpoint_every=4))
    rows = recorder.run()
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 11] == recorder.events
    assert {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row} == {
        3: 13,
        6: 16,
        9: 19,
        11: 21,
    }
    # At each save the rows of all its steps are already written.
    assert recorder.saved == [(4, 3), (8, 5), (11, 8)]


def test_loop_looks_and_saves_at_the_end_only_when_asked_never_to(tmp_path):
    recorder = Recorder(tmp_path, Trainer(steps=5, log_every=9, eval_every=0, checkpoint_every=0))
    rows = recorder.run()
    assert [(row["step"], row["validation_loss"]) for row in rows] == [(5, 15.0)]
    assert recorder.saved == [(5, 1)]


def test_rows_say_what_the_step_was_like(tmp_path):
    row = Recorder(tmp_path, Trainer(steps=4, log_every=4)).run()[0]
    times = {row.pop("seconds"), row.pop("tokens_per_second")}
    assert row == {
        "step": 4,
        "loss": 0.25,
        "learning_rate": 0.5,
        "gradient_norm": 2.0,
        "tokens": 400,
        "validation_loss": 14.0,
    }
    assert min(times) >= 0


def test_speed_counts_tokens_since_the_row_before_and_no_other_time(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("transom.training.loop.time.perf_counter", lambda: float(next(clock)))
    rows = Recorder(tmp_path, Trainer(steps=6, log_every=3)).run()
    # Every look at the clock is a second later, and a step looks twice.
    assert [(row["seconds"], row["tokens_per_second"]) for row in rows] == [(3.0, 100.0), (6.0, 100.0)]


def test_loop_goes_on_with_the_seconds_of_the_rows_before(tmp_path):
    RunFolder(tmp_path).metrics.append({"step": 2, "seconds": 1000.0})
    rows = Recorder(tmp_path, Trainer(step=2, steps=4, log_every=1)).run()
    assert all(1000 <= row["seconds"] < 1001 for row in rows)


def test_loop_of_a_complete_run_does_nothing(tmp_path):
    recorder = Recorder(tmp_path, Trainer(step=4, steps=4))
    assert recorder.run() == []
    assert recorder.saved == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_saves_it(tmp_path, number):
    trainer = Trainer(steps=9, log_every=1, happens={5: lambda: os.kill(os.getpid(), number)})
    recorder = Recorder(tmp_path, trainer)
    with pytest.raises(KeyboardInterrupt):
        recorder.run()
    assert recorder.saved == [(5, 5)]


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    trainer = Trainer(steps=5, happens={5: lambda: os.kill(os.getpid(), signal.SIGINT)})
    recorder = Recorder(tmp_path, trainer)
    assert recorder.run()[-1]["step"] == 5
    assert recorder.saved == [(5, 1)]


@pytest.mark.parametrize(("name", "value"), [("nan", float("nan")), ("inf", float("inf"))])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_no_number_stops_the_run_and_is_never_saved(tmp_path, name, value, log_every):
    settings = {"steps": 9, "log_every": log_every, "checkpoint_every": 3, "eval_every": 0}
    recorder = Recorder(tmp_path, Trainer(happens={6: lambda: value}, **settings))
    with pytest.raises(
        TransomError, match=f"the loss of step 6 is {name}, and the norm of its gradients 2.0"
    ) as caught:
        recorder.run()
    assert caught.value.step == 6
    assert "a lower train.learning_rate" in caught.value.hint
    assert [step for step, _ in recorder.saved] == [3]
