"""Runs of several processes: the losses of one, resumption on other numbers, processes that die, and clear errors."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_jobs
import pytest
import torch
from forked import Forked
from transom.checkpoint.store import open_checkpoint
from transom.pretrained.convert import convert
from transom.pretrained.load import from_pretrained

pytestmark = pytest.mark.multiprocess

WORKER = str(Path(__file__).with_name("train_worker.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}

Described = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Described:
    """Arguments of a run of six steps, with checkpoints every other."""
    text = tmp_path_factory.mktemp("data") / "text.txt"
    text.write_text("the cat sat on a mat and the dog ate it all up. " * 200)

    def describe(out: Path, **changes: Any) -> dict[str, Any]:
        spec = model_jobs.spec(params_dtype="float32", init_method_std=0.05)
        spec |= {"vocab_size": 256, "max_sequence_length": 16, "name": "toy"}
        spec["train"] = {
            "data": str(text),
            "batch_size": 4,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "log_every": 1,
            "eval_every": 3,
            "eval_batches": 3,
            "checkpoint_every": 2,
            "keep_checkpoints": 0,
        }
        return {"spec": spec, "out": str(out), "steps": 6, "use": model_jobs.PARALLEL} | changes

    return describe


def start(arguments: dict[str, Any], size: int) -> list[tuple[int, str, str]]:
    """Run the worker on some ranks, without torchrun; give each rank's exit code, output and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_PORT": str(port)} if size > 1 else {}
    processes = [
        Forked(
            WORKER, json.dumps(arguments), environment=ENVIRONMENT | world | ({"RANK": str(rank)} if size > 1 else {})
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def finish(arguments: dict[str, Any], size: int) -> dict[str, float]:
    ranks = start(arguments, size)
    assert [code for code, _, _ in ranks] == [0] * size, ranks
    result: dict[str, float] = json.loads(ranks[0][1].splitlines()[-1])
    return result


def losses(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["gradient_norm"]) for row in rows]


def alike(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
    return [pytest.approx(pair, rel=2e-5) for pair in one] == other


@pytest.fixture(scope="module")
def alone(described: Described, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of one process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    finish(described(out), 1)
    return out


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"dp": 2}, {"tp": 2, "dp": 2}, {"tp": 2, "cp": 2}], ids=str)
def test_ranks_have_the_loss_curve_of_one_process(
    described: Described, alone: Path, tmp_path: Path, sizes: dict[str, int]
) -> None:
    count = math.prod(sizes.values())
    finish(described(tmp_path / "run", **sizes), count)
    assert alike(losses(tmp_path / "run"), losses(alone))
    found = from_pretrained(tmp_path / "run").state_dict()
    for name, expected in from_pretrained(alone).state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def test_weights_of_ranks_are_converted_like_those_of_one_process(
    described: Described, alone: Path, tmp_path: Path
) -> None:
    finish(described(tmp_path / "run", tp=2, steps=2), 2)
    made = convert(tmp_path / "run", tmp_path / "whole", to="transom")
    assert made.tensors == convert(alone, tmp_path / "other", to="transom").tensors
    assert open_checkpoint(tmp_path / "whole").manifest.sizes == {}
    found = from_pretrained(tmp_path / "whole").state_dict()
    for name, expected in from_pretrained(tmp_path / "run").state_dict().items():
        assert torch.equal(found[name], expected)


def test_run_goes_on_with_other_numbers_of_ranks_and_alone(described: Described, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(described(out, tp=2, die=["step", 3]), 2)
    start(described(out, dp=2, die=["step", 5], resume=True), 2)
    finish(described(out, resume=True), 1)
    assert alike(losses(out), losses(alone))
    assert json.loads((out / "checkpoints/step-00000006/checkpoint.json").read_text())["sizes"] == {}


def test_ranks_begin_with_the_weights_of_another_run(described: Described, alone: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        finish(described(tmp_path / f"{size}", tp=size, steps=2, init_from=str(alone)), size)
    assert alike(losses(tmp_path / "2"), losses(tmp_path / "1"))
    assert losses(tmp_path / "1")[0][0] < losses(alone)[0][0] - 0.1


def test_ranks_that_share_weights_refuse_to_begin_with_a_folder_of_hugging_face_s_form(
    described: Described, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ranks = start(described(tmp_path / "run", tp=2, init_from=str(folder)), 2)
    for code, _, said in ranks:
        assert code == 2
        assert said.startswith(f"ParallelError: {folder} is of Hugging Face's form, of which ranks that share weights")
        assert f"transom convert {folder} NEW, and begin with NEW" in said
    assert not (tmp_path / "run").exists()


def test_run_whose_ranks_share_sequences_goes_on_where_they_share_weights(
    described: Described, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    start(described(out, cp=2, die=["step", 5]), 2)
    finish(described(out, tp=2, resume=True), 2)
    assert alike(losses(out), losses(alone))


@pytest.mark.parametrize("when", [["step", 3], ["save", 4]], ids=str)
def test_death_of_a_rank_ends_the_others_at_once_and_loses_no_checkpoint(
    described: Described, alone: Path, tmp_path: Path, when: list[Any]
) -> None:
    out = tmp_path / "run"
    (code, _, said), (killed, _, _) = start(described(out, dp=2, die=when), 2)
    assert (code, killed) == (2, -9), said
    assert said.startswith("ParallelError: another rank is gone, or does not answer.")
    assert "--resume goes on from the last checkpoint" in said
    assert sorted(path.name for path in (out / "checkpoints").iterdir() if path.name[0] != ".") == ["step-00000002"]
    finish(described(out, dp=2, resume=True), 2)
    assert alike(losses(out), losses(alone))


def test_command_line_trains_a_pipeline_under_torchrun(described: Described, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(described(tmp_path)["spec"]))
    out, transom = tmp_path / "run", Path(sys.executable).with_name("transom")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*command, transom, "train", tmp_path / "toy.json", "--steps", "6", "--pp", "2", "--out", out],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks (pp=2, dp=1, cp=1, tp=1) on cpu; plan " in done.stderr
    parameters = sum(p.numel() for p in from_pretrained(alone).parameters())
    assert done.stdout.startswith(f"trained:         {parameters:,} parameters, 6 steps")
    assert alike(losses(out), losses(alone))


def test_torchrun_restarts_a_run_where_it_was(described: Described, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = json.dumps(described(out, tp=2, die=["step", 5]))
    done = subprocess.run(
        [*command, "--max-restarts", "1", WORKER, arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert alike(losses(out), losses(alone))


@pytest.mark.parametrize(
    ("size", "changes", "kind", "text"),
    [
        (1, {"tp": 2}, "ParallelError", "tp=2,pp=1,dp=1,cp=1 makes 2 ranks, and 1 was started."),
        (2, {"tp": 3}, "ParallelError", "tp=3,pp=1,dp=1,cp=1 makes 3 ranks, and 2 were started."),
        (2, {"tp": 2, "use": {}}, "ResolutionError", "tensor_parallel"),
    ],
)
def test_what_cannot_be_is_refused_on_the_first_rank(
    described: Described, tmp_path: Path, size: int, changes: dict[str, Any], kind: str, text: str
) -> None:
    for code, _, said in start(described(tmp_path / "run", **changes), size):
        assert code == 2
        assert said.startswith(f"{kind}: ")
        assert text in said
    assert not (tmp_path / "run").exists()
