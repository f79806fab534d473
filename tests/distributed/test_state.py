"""What some ranks saved, any others load, one process among them; and training goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import state_jobs
import torch
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

SIZES = [{"tp": 2}, {"dp": 2}, {"tp": 4}, {"tp": 2, "dp": 2}, {"dp": 4}]
NAMES = ["-".join(f"{name}{size}" for name, size in sizes.items()) for sizes in SIZES]


def count(sizes: dict[str, int]) -> int:
    return sizes.get("tp", 1) * sizes.get("dp", 1)


def alike(one: Any, other: Any) -> bool:
    return all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A checkpoint of one process and of each sizes, with the losses and norms of its three steps."""
    made: dict[str, tuple[Path, Any]] = {}
    for name, sizes in [("one", None), *zip(NAMES, SIZES, strict=True)]:
        folder = tmp_path_factory.mktemp(name)
        if sizes is None:
            seen = state_jobs.save(str(folder), None)
        else:
            seen, *others = ranks(count(sizes)).run(state_jobs.save_on_ranks, str(folder), sizes, {})
            assert all(other == seen for other in others)
        made[name] = folder, seen
    return made


@pytest.mark.parametrize("name", NAMES)
def test_ranks_train_as_one_process_does(saved: dict[str, tuple[Path, Any]], name: str) -> None:
    for found, expected in zip(saved[name][1], saved["one"][1], strict=True):
        assert alike(found, expected)


@pytest.mark.parametrize("loaded", NAMES)
@pytest.mark.parametrize("name", ["one", *NAMES])
def test_ranks_go_on_from_what_others_saved(saved: dict[str, tuple[Path, Any]], name: str, loaded: str) -> None:
    folder, seen = saved[name]
    sizes = SIZES[NAMES.index(loaded)]
    for after, _ in ranks(count(sizes)).run(state_jobs.load_on_ranks, str(folder), sizes, {}):
        assert alike(after, seen[2])


@pytest.mark.parametrize("name", ["one", *NAMES])
def test_one_process_goes_on_from_what_ranks_saved(saved: dict[str, tuple[Path, Any]], name: str) -> None:
    folder, seen = saved[name]
    after, weights = state_jobs.load(str(folder), None)
    assert alike(after, seen[2])
    _, expected = state_jobs.load(str(saved["one"][0]), None)
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-9)
