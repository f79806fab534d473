"""What is wrong with a run of several processes is said once, by the first of them, and nothing is written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_jobs
import pytest
import yaml
from forked import Forked
from transom.cli.main import main

pytestmark = pytest.mark.multiprocess

WORKER = str(Path(__file__).with_name("cli_worker.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
CHECKPOINT = "checkpoints/step-00000002/"

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "heads": (
        {"config": {"num_attention_heads": 3, "num_query_groups": 3, "kv_channels": 8}},
        "--tp 2",
        "ConfigError: tensor_model_parallel_size is 2; a divisor of num_attention_heads (3) is needed.",
    ),
    "more_ranks_than_heads": (
        {"config": {"num_attention_heads": 1, "num_query_groups": 1}},
        "--tp 2",
        "ConfigError: tensor_model_parallel_size is 2; a divisor of num_attention_heads (1) is needed.",
    ),
    "ffn": (
        {"config": {"ffn_hidden_size": 25}},
        "--tp 2",
        "ConfigError: tensor_model_parallel_size is 2; a divisor of ffn_hidden_size (25) is needed.",
    ),
    "vocabulary": (
        {"vocab_size": 257},
        "--tp 2",
        "ResolutionError: embedding 'parallel_linear' cannot serve.\n"
        "  Asked by:   use.embedding in vocabulary.yaml\n"
        "  Failed:     transom-parallel-linear/parallel_linear: num_embeddings cannot be split: "
        "257 is not a multiple of 2 ranks (supports)\n",
    ),
    "layers": (
        {"config": {"num_layers": 3}},
        "--pp 2",
        "ParallelError: num_layers is 3; 3 layers (embedding and loss counted as asked) do not divide over 2 pipeline "
        "chunks.\n  Asked by:   pp=2\n",
    ),
    "batch": (
        {"train": {"batch_size": 3}},
        "--dp 2",
        "ParallelError: a batch of 3 sequences does not divide over 2 data-parallel ranks.\n"
        "  Try:        a train.batch_size that is a multiple of 2\n",
    ),
    "sequence": (
        {
            "config": {"sequence_parallel": True, "tensor_model_parallel_size": 2},
            "train": {"sequence_length": 15},
        },
        "--tp 2",
        "ParallelError: sequences of 15 tokens do not divide over 2 tensor-parallel ranks.\n",
    ),
}
DAMAGED = {
    "missing_shard": ("shards/shard-00002-*", "missing", " is missing"),
    "truncated_shard": ("shards/shard-00001-*", "truncated", " were written."),
    "manifest": ("checkpoint.json", "truncated", " is damaged: "),
}
WORLD = (
    "ParallelError: tp=3,pp=1,dp=1,cp=1 makes 3 ranks, and 2 were started.\n"
    "  Try:        torchrun --nproc-per-node 3, or other sizes\n"
)


def write_spec(folder: Path, name: str, changes: dict[str, Any]) -> str:
    text = folder / "text.txt"
    text.write_text("the cat sat on a mat and the dog ate it all up. " * 200)
    spec = model_jobs.spec(params_dtype="float32")
    spec |= {"vocab_size": 256, "max_sequence_length": 16, "name": name, "use": model_jobs.PARALLEL}
    spec["train"] = {"data": str(text), "batch_size": 4, "steps": 2, "warmup_steps": 1, "eval_batches": 1}
    for key, value in changes.items():
        spec[key] = spec[key] | value if isinstance(value, dict) else value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec))
    return str(file)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def call_together(calls: list[dict[str, Any]]) -> list[list[tuple[int, str]]]:
    """Give each call's exit code and errors, of both ranks."""
    try:
        return called(calls, limit=100)
    except subprocess.TimeoutExpired:  # another process may have taken a port that was free: ranks then never meet
        return called(calls, limit=240)


def called(calls: list[dict[str, Any]], limit: float) -> list[list[tuple[int, str]]]:
    for call, port in zip(calls, free_ports(len(calls)), strict=True):
        call["port"] = port
    processes = [
        Forked(WORKER, json.dumps(calls), environment=ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=limit) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    answers = [json.loads(out.splitlines()[-1]) for out, _ in said]
    return [[(code, text) for code, text in pair] for pair in zip(*answers, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrong")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """What both ranks say of every call, by the call's name; the call ``written`` writes a checkpoint."""
    calls: dict[str, dict[str, Any]] = {}
    for name, (changes, sizes, _) in WRONG.items():
        out = str(folder / f"out-{name}")
        calls[name] = {"args": ["train", write_spec(folder, name, changes), "--out", out, *sizes.split()]}
    run = ["train", write_spec(folder, "right", {}), "--out"]
    here = [*run, str(folder / "out-plans"), "--dp", "2"]
    calls["plans"] = {"args": [here, [*here, "--use", "layers.1.mlp.linear_fc1=torch_linear"]]}
    calls["world"] = {"args": [*run, str(folder / "out-world"), "--tp", "3"]}
    calls["written"] = {"args": [*run, str(folder / "run"), "--tp", "2"]}
    for name, (file, how, _) in DAMAGED.items():
        again = [*run, str(folder / name), "--tp", "2", "--resume", "--steps", "4"]
        damage = [str(folder / "run"), str(folder / name), CHECKPOINT + file, how]
        calls[name] = {"args": again, "damage": damage}
    return dict(zip(calls, call_together(list(calls.values())), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_divide_is_said_once(said: dict[str, list[tuple[int, str]]], folder: Path, name: str) -> None:
    (code, text), (other_code, other_text) = said[name]
    assert (code, other_code, other_text) == (2, 2, "")
    assert text.startswith(WRONG[name][2])
    assert not (folder / f"out-{name}").exists()


def test_ranks_that_planned_different_models_say_so_once(said: dict[str, list[tuple[int, str]]], folder: Path) -> None:
    (code, text), (other_code, other_text) = said["plans"]
    assert (code, other_code, other_text) == (2, 2, "")
    _, error = text.split("\n", 1)  # the first line tells the mesh and the plan
    assert error.startswith("PlanMismatchError: rank 0 and rank 1 of the group planned different models.\n")
    assert "layers.1.mlp.linear_fc1: transom/torch_linear was locked, now transom-parallel-linear/parallel" in error
    assert not list((folder / "out-plans").glob("checkpoints/*"))


def test_other_number_of_ranks_than_were_started_is_said_once(
    said: dict[str, list[tuple[int, str]]], folder: Path
) -> None:
    assert said["world"] == [(2, WORLD), (2, "")]
    assert not (folder / "out-world").exists()


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoint_is_said_once_and_left_alone(
    said: dict[str, list[tuple[int, str]]], folder: Path, name: str
) -> None:
    assert [code for code, _ in said["written"]] == [0, 0]
    (code, text), (other_code, other_text) = said[name]
    assert (code, other_code, other_text) == (2, 2, "")
    error = text[text.index("CheckpointError: ") :]
    pattern, _, why = DAMAGED[name]
    assert Path(error.split()[1].rstrip(":")).match(f"*{CHECKPOINT}{pattern}")
    assert why in error
    assert "Traceback" not in text
    assert [path.name for path in (folder / name / "checkpoints").iterdir()] == ["step-00000002"]


def test_missing_torchrun_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", write_spec(folder, "alone", {}), "--tp", "2", "--out", str(folder / "out-alone")]) == 2
    assert capsys.readouterr().err == (
        "ParallelError: tp=2,pp=1,dp=1,cp=1 makes 2 ranks, and 1 was started.\n"
        "  Try:        torchrun --nproc-per-node 2, or other sizes\n"
    )


def test_torchrun_shows_the_error_once_and_in_its_summary(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    transom = str(Path(sys.executable).with_name("transom"))
    done = subprocess.run(
        [*command, transom, "train", write_spec(folder, "torchrun", {}), "--tp", "3"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    before, _, after = done.stderr.partition("Traceback (most recent call last):")  # torchrun's own
    assert before.startswith(WORLD)
    assert before.count("ParallelError") == 1
    assert after.count("Traceback (most recent call last):") == 0
    assert f"traceback : {WORLD}" in after
