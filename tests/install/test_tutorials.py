"""The tutorials, followed step by step by somebody who has nothing but the page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def _commands(page: str, verb: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for found in _BLOCK.finditer(text) if not found["language"] for line in found["text"].splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"transom {verb} ")]


def _install(environment, folder) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    environment.install(*(folder / "dist").glob("*.whl"))


def test_publish_an_attention_ends_with_one_that_works(environment, written):
    page = "docs/tutorials/publish-an-attention.md"
    folder = environment.work / "acme-blockwise"
    for command in _commands(page, "new"):
        assert environment.transom(*command).returncode == 0
    files = written(page)
    for path in files.rglob("*.*"):
        if path.is_file():
            (environment.work / path.relative_to(files)).write_bytes(path.read_bytes())
    _install(environment, folder)

    tests = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests"))
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", tests.stdout)[1]) > 100

    refused, planned = (environment.transom(*command) for command in _commands(page, "plan"))
    assert "its card does not declare dropout" in refused.stdout
    assert "acme_blockwise" in planned.stdout
    for verb in ("train", "generate"):
        for command in _commands(page, verb):
            done = environment.transom(*command)
            assert done.returncode == 0, done.stderr


def test_publish_an_attention_has_a_kit_that_finds_the_mistake_it_tells_to_make(environment, written):
    page = "docs/tutorials/publish-an-attention.md"
    environment.transom(*_commands(page, "new")[0])
    folder = environment.work / "acme-blockwise"
    source = "src/acme_blockwise/core_attention.py"
    text = (written(page) / "acme-blockwise" / source).read_text()
    broken = text.replace("output = output * shrink + part", "output = output + part")
    assert broken != text
    (folder / source).write_text(broken.replace("BLOCK = 64", "BLOCK = 4"))
    _install(environment, folder)
    (check,) = [command for command in _commands(page, "check") if "--only" in command]
    done = environment.transom(*check)
    assert done.returncode == 1
    passed, total, failed = map(int, re.search(r"(\d+) of (\d+) cases passed, (\d+) failed", done.stdout).groups())
    assert failed > 0.8 * total > passed


def test_first_model_is_planned_trained_resumed_sampled_swapped_and_locked(environment, written):
    page = "docs/tutorials/first-model.md"
    environment.install(ROOT / "plugins" / "torch_dot_product")
    (environment.work / "first.yaml").write_bytes((written(page) / "first.yaml").read_bytes())

    def follow(verb):
        done = [environment.transom(*command) for command in _commands(page, verb)]
        assert [each.returncode for each in done] == [0] * len(done), [each.stderr for each in done]
        return [each.stdout for each in done]

    follow("train")
    lines = (environment.work / "runs" / "first" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}
    assert max(losses) == 40
    assert losses[40] < losses[20] < losses[min(losses)]
    sampled, plain, swapped = follow("generate")
    assert sampled.startswith("The ")
    assert swapped == plain
    follow("lock")
    unlocked, locked = follow("plan")
    assert "dot_product (transom " in unlocked
    assert "dot_product (transom " in locked
