"""A rank that is killed at a random moment: nothing that was saved is lost, nobody waits for it, and the run goes on.

Two moments are tried each time; ``pytest -m slow tests/distributed/test_killed_ranks.py`` tries twenty.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any

import model_jobs
import pytest
import torch
from forked import Forked
from safetensors.torch import load_file
from transom.checkpoint.store import list_checkpoints, open_checkpoint

pytestmark = pytest.mark.multiprocess

WORKER = str(Path(__file__).with_name("train_worker.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
STEPS = 10
PATIENCE = 60.0
"""Seconds within which the others end after a death: a second or two, on a machine that does little else."""

SEEDS = [pytest.param(seed, marks=() if seed < 2 else pytest.mark.slow) for seed in range(20)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("the cat sat on a mat and the dog ate it all up. " * 200)
    return file


def describe(text: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A run that saves after every step."""
    spec = model_jobs.spec(params_dtype="float32", init_method_std=0.05, hidden_dropout=0.1)
    spec |= {"vocab_size": 256, "max_sequence_length": 16, "name": "toy"}
    train = {"data": str(text), "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 2, "log_every": 1}
    spec["train"] = train | {"eval_batches": 1, "checkpoint_every": 1, "keep_checkpoints": 0}
    return {"spec": spec, "out": str(out), "steps": STEPS, "use": model_jobs.PARALLEL} | changes


def start(arguments: dict[str, Any]) -> list[Forked]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"WORLD_SIZE": "2", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        Forked(WORKER, json.dumps(arguments), environment=ENVIRONMENT | world | {"RANK": str(rank)})
        for rank in range(2)
    ]


def finish(processes: list[Forked], patience: float = 240.0) -> list[tuple[int, str]]:
    """Give each rank's exit code and errors."""
    try:
        said = [process.communicate(timeout=patience)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def begun(out: Path) -> float:
    """Wait until a run has written its spec; give the time."""
    deadline = time.monotonic() + PATIENCE
    while not (out / "spec.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return time.monotonic()


def losses(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["gradient_norm"]) for row in rows]


def tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Give every rank's tensors: weights, the optimizer's state, random states."""
    files = [*checkpoint.glob("shards/*"), *checkpoint.glob("random-*")]
    return {(file.name, key): tensor for file in files for key, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the folder and the seconds of a run with the given sizes that nobody killed."""

    @cache
    def run(name: str) -> tuple[Path, float]:
        out = tmp_path_factory.mktemp("runs") / name
        processes = start(describe(text, out, **{name: 2}))
        first = begun(out)
        ended = finish(processes)
        assert [code for code, _ in ended] == [0, 0], ended
        return out, time.monotonic() - first

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_run_goes_on_exactly_after_a_rank_was_killed_at_a_random_moment(
    seed: int, whole: Any, text: Path, tmp_path: Path
) -> None:
    draw, name, out = random.Random(seed), ("dp", "tp")[seed // 2 % 2], tmp_path / "run"
    unharmed, seconds = whole(name)
    victim, moment = draw.randrange(2), draw.random() * seconds
    processes = start(describe(text, out, **{name: 2}))
    begun(out)
    time.sleep(moment)
    saved = list_checkpoints(out / "checkpoints") if (out / "checkpoints").exists() else []
    processes[victim].send_signal(signal.SIGKILL)
    ranks = finish(processes, PATIENCE)
    code, said = ranks[1 - victim]
    if ranks[victim][0] == -signal.SIGKILL:  # else it had ended before
        assert code in (0, 2), said
        assert code == 0 or said.startswith("ParallelError: another rank is gone, or does not answer."), said
        assert "Traceback" not in said
    assert set(saved) <= set(list_checkpoints(out / "checkpoints"))
    for checkpoint in list_checkpoints(out / "checkpoints"):
        found = open_checkpoint(checkpoint)
        assert all(found.file(file).exists() for file in found.manifest.files)
    resumed = finish(start(describe(text, out, resume=True, **{name: 2})))
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert losses(out) == losses(unharmed)
    last = f"checkpoints/step-{STEPS:08d}"
    mine, others = tensors(out / last), tensors(unharmed / last)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[key], others[key]) for key in mine)
