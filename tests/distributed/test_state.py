"""What some ranks saved, any others load, one process among them; and training goes on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
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


def test_training_goes_on_while_a_checkpoint_is_written(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    for seen, kind, what in ranks(2).run(state_jobs.save_in_background, str(tmp_path), {"dp": 2}):
        assert all(alike(found, expected) for found, expected in zip(seen[:3], saved["one"][1], strict=True))
        assert (kind, what) == ("OutputError", f"{tmp_path}/step-00000002 exists already, and nothing is overwritten.")
    after, _ = state_jobs.load(str(tmp_path), None)
    assert alike(after, saved["one"][1][2])


def test_save_that_fails_on_one_rank_fails_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    for kind, what in ranks(2).run(state_jobs.save_where_the_last_rank_cannot_write, str(tmp_path), {"tp": 2}):
        assert kind == "OutputError"
        assert what.endswith(": No space left on device.")
    assert list(tmp_path.iterdir()) == []


def refused(folder: Path, sizes: dict[str, int], **changes: Any) -> str:
    """Load a checkpoint that cannot be; give the text of the error, the same on all ranks."""
    first, *others = ranks(count(sizes)).run(state_jobs.refuse, str(folder), sizes, changes)
    assert all(other == first for other in others)
    kind, text = first
    assert kind == "CheckpointError"
    return text


@pytest.fixture
def copied(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    """A checkpoint of four ranks that may be damaged."""
    return Path(shutil.copytree(saved["tp2-dp2"][0], tmp_path / "copy"))


def test_missing_shard_is_told_on_every_rank(copied: Path) -> None:
    shard = sorted(copied.glob("*/shards/*"))[2]
    shard.unlink()
    assert refused(copied, {"tp": 2}).startswith(f"{shard} is missing.")


def test_truncated_shard_is_told_on_every_rank(copied: Path) -> None:
    shard = sorted(copied.glob("*/shards/*"))[1]
    size = shard.stat().st_size
    os.truncate(shard, size - 8)
    assert refused(copied, {"dp": 2}).startswith(f"{shard} has {size - 8} bytes; {size} were written.")


def test_altered_shard_is_told_on_every_rank(copied: Path) -> None:
    shard = sorted(copied.glob("*/shards/*"))[0]
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 1
    shard.write_bytes(contents)
    assert refused(copied, {"tp": 2}).startswith(f"{shard} is not as it was written.")


def test_checkpoint_of_another_model_is_told_on_every_rank(copied: Path) -> None:
    said = refused(copied, {"tp": 2}, num_layers=3, ffn_hidden_size=32)
    assert "the weights are not this model's" in said
    assert "layers.2.input_layernorm.weight is missing" in said
    assert "layers.0.mlp.linear_fc1.weight_w has shape [24, 16]; the model's is [32, 16]" in said
