from __future__ import annotations

import os
import resource

import pytest
from transom.errors import OutputError
from transom.training.metrics import Metrics

ROWS = [{"step": 10 * i, "loss": 1 / (i + 1), "seconds": 0.5 * i} for i in range(4)]


@pytest.fixture
def metrics(tmp_path):
    made = Metrics(tmp_path / "metrics.jsonl")
    for row in ROWS:
        made.append(row)
    return made


def test_rows_read_back_bit_for_bit(metrics):
    assert metrics.rows() == ROWS
    assert len(metrics.path.read_text().splitlines()) == 4


def test_rows_of_no_file_are_none(tmp_path):
    assert Metrics(tmp_path / "none").rows() == []


def test_rows_leave_out_a_line_that_was_cut_off(metrics):
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "lo')
    assert metrics.rows() == ROWS


@pytest.mark.parametrize(("step", "kept"), [(30, 4), (29, 3), (0, 1), (-1, 0)])
def test_rewind_drops_later_rows_and_what_was_cut_off(metrics, step, kept):
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "lo')
    metrics.rewind(step)
    assert metrics.rows() == ROWS[:kept]
    metrics.append({"step": 99})
    assert metrics.rows() == [*ROWS[:kept], {"step": 99}]


def test_rewind_makes_an_empty_file_when_there_is_none(tmp_path):
    Metrics(tmp_path / "m").rewind(0)
    assert (tmp_path / "m").read_bytes() == b""


def test_append_refuses_what_json_cannot_say(metrics):
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.append({"step": 1, "loss": float("nan")})


def test_full_disk_is_an_output_error_and_keeps_the_rows(metrics):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*metrics\.jsonl: File too large"):
            metrics.append({"step": 40, "loss": 0.1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert metrics.rows() == ROWS


def test_flush_to_disk_syncs_the_file(metrics, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    metrics.flush_to_disk()
    assert synced == [metrics.path.stat().st_ino]
    Metrics(metrics.path.with_name("none")).flush_to_disk()
    assert len(synced) == 1
