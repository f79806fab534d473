"""Trainings of a T5 that processes share are that of one process, and go on under any other cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import t5_jobs
from transom.testing.ranks import ranks
from transom.training.run import train

pytestmark = pytest.mark.multiprocess

CHANGES = {t5_jobs.TIED: True, "num_query_groups": 2}
SIZES: list[dict[str, int]] = [
    {},
    {"tp": 2},
    {"pp": 2},
    {"dp": 2},
    {"tp": 4},
    {"pp": 4},
    {"tp": 2, "pp": 2},
    {"tp": 2, "dp": 2},
    {"pp": 2, "dp": 2},
]


def name_of(sizes: dict[str, int]) -> str:
    return "-".join(f"{name}{count}" for name, count in sizes.items()) or "alone"


def run(job: Any, sizes: dict[str, int], *arguments: Any) -> list[Any]:
    """Do a job with as many processes as the sizes make; give what each returns."""
    count = sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("dp", 1)
    return ranks(count).run(job, *arguments) if count > 1 else [job(*arguments)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """A checkpoint of each sizes after two steps, and what each rank saw of these and one more."""
    found = {}
    for sizes in SIZES:
        folder = tmp_path_factory.mktemp(name_of(sizes))
        found[name_of(sizes)] = folder, run(t5_jobs.save, sizes, str(folder), sizes, CHANGES)
    return found


@pytest.mark.parametrize("sizes", SIZES[1:], ids=name_of)
def test_ranks_train_as_one_process_does(sizes: dict[str, int], saved: dict[str, tuple[Path, list[Any]]]) -> None:
    (expected,) = saved["alone"][1]
    for found in saved[name_of(sizes)][1]:
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_any_cut_goes_on_from_what_any_other_saved(
    sizes: dict[str, int], saved: dict[str, tuple[Path, list[Any]]]
) -> None:
    (expected,) = saved["alone"][1]
    folders = [str(folder) for folder, _ in saved.values()]
    for seen in run(t5_jobs.load, sizes, folders, sizes, CHANGES):
        for folder, found in zip(folders, seen, strict=True):
            assert found == pytest.approx(expected[-2:], rel=1e-6), folder


def test_command_line_trains_stages_as_one_process_does(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and the dog ate it all up. " * 100)
    described = t5_jobs.spec(params_dtype="float32", train=t5_jobs.TRAIN | {"data": str(text), "log_every": 1})
    described |= {"vocab_size": 288, "name": "t5"}
    train(described, out=tmp_path / "alone", steps=3)
    (tmp_path / "t5.json").write_text(json.dumps(described))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command += [str(Path(sys.executable).with_name("transom")), "train", str(tmp_path / "t5.json"), "--steps", "3"]
    done = subprocess.run(
        [*command, "--pp", "2", "--out", str(tmp_path / "stages")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, stages = (curve(tmp_path / name) for name in ("alone", "stages"))
    assert len(alone) == 3
    assert stages == [pytest.approx(pair, rel=2e-5) for pair in alone]


def curve(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["gradient_norm"]) for row in rows]
