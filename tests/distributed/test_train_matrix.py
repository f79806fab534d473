"""Trainings of a decoder that processes share are that of one process, and go on under any other cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import train_jobs
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

LAYOUT = "Et|t||L"
CUTS: list[dict[str, Any]] = [
    {},
    {"tp": 2},
    {"pp": 2},
    {"dp": 2},
    {"tp": 4},
    {"tp": 2, "pp": 2},
    {"tp": 2, "dp": 2, "sequence_parallel": True},
    {"pp": 2, "dp": 2, "schedule": "zero_bubble"},
    {"pp": 2, "virtual_pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": LAYOUT},
    {"pp": 2, "cp": 2, "schedule": "gpipe", "microbatches": 1},
]


def name_of(cut: dict[str, Any]) -> str:
    return "-".join(f"{name}{cut[name]}" for name in cut if name in train_jobs.SIZES) or "alone"


def run(job: Any, cut: dict[str, Any], argument: Any) -> list[Any]:
    """Do a job with as many processes as a cut makes; give what each returns."""
    count = cut.get("tp", 1) * cut.get("pp", 1) * cut.get("dp", 1) * cut.get("cp", 1)
    return ranks(count).run(job, argument, cut) if count > 1 else [job(argument, cut)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[Any]]]:
    """A checkpoint of each cut after two steps, and what each rank saw of these and one more."""
    folders = [tmp_path_factory.mktemp("cut") for _ in CUTS]
    return [(folder, run(train_jobs.save, cut, str(folder))) for folder, cut in zip(folders, CUTS, strict=True)]


@pytest.mark.parametrize("number", range(1, len(CUTS)), ids=lambda number: name_of(CUTS[number]))
def test_ranks_train_as_one_process_does(number: int, saved: list[tuple[Path, list[Any]]]) -> None:
    (expected,) = saved[0][1]
    for found in saved[number][1]:
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cut", CUTS, ids=name_of)
def test_any_cut_goes_on_from_what_any_other_saved(cut: dict[str, Any], saved: list[tuple[Path, list[Any]]]) -> None:
    (expected,) = saved[0][1]
    folders = [str(folder) for folder, _ in saved]
    for seen in run(train_jobs.load, cut, folders):
        for other, found in zip(CUTS, seen, strict=True):
            assert found == pytest.approx(expected[-3:], rel=1e-6), other
