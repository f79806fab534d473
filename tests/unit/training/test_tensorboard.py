from __future__ import annotations

import sys
import types

import pytest
from transom.errors import OutputError
from transom.training.tensorboard import open_event_files


class Writer:
    """Stands in for torch's SummaryWriter, whose package is not among the development tools."""

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.closed = [], False

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def close(self):
        self.closed = True


@pytest.fixture
def installed(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_rows_become_scalars(installed, tmp_path):
    events = open_event_files(tmp_path, step=0)
    events.append({"step": 3, "loss": 2.0, "seconds": 9.0, "tokens_per_second": 7.0})
    events.append({"step": 4, "loss": 1.0, "validation_loss": 1.5})
    events.close()
    writer = events._writer
    assert writer.scalars == [
        ("loss/training", 2.0, 3),
        ("tokens_per_second", 7.0, 3),
        ("loss/training", 1.0, 4),
        ("loss/validation", 1.5, 4),
    ]
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path), None, True)


def test_steps_that_will_be_done_again_are_hidden(installed, tmp_path):
    assert open_event_files(tmp_path, step=20)._writer.purge_step == 21


@pytest.mark.parametrize("name", ["add_scalar", "close"])
def test_full_disk_is_an_output_error(installed, tmp_path, monkeypatch, name):
    def full(*args):
        raise OSError(28, "No space left on device")

    events = open_event_files(tmp_path, step=0)
    monkeypatch.setattr(events._writer, name, full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        events.append({"step": 1, "loss": 1.0}) if name == "add_scalar" else events.close()
    assert caught.value.path == tmp_path


def test_nothing_is_written_when_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_event_files(tmp_path, step=0) is None
    assert list(tmp_path.iterdir()) == []
