"""`transom lock`, and `transom plan --locked`."""

from __future__ import annotations

import json

import pytest
from transom import plan
from transom.cli.main import main
from transom.specs.lock import Lock, read_lock


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_lock_writes_the_lock_of_the_plan(tmp_path, capsys):
    assert main(["lock", "tiny-llama"]) == 0
    lock = read_lock(tmp_path / "tiny-llama.lock.json")
    assert lock == Lock.from_plan(plan("tiny-llama"))
    out = capsys.readouterr().out
    assert out.startswith(f"Locked {len(lock.nodes)} places of tiny-llama in tiny-llama.lock.json, filled from transom")


def test_lock_writes_a_line_for_every_place(tmp_path):
    main(["lock", "tiny-llama", "--out", "a.json"])
    lines = (tmp_path / "a.json").read_text().splitlines()
    paths = [json.loads(line.strip().rstrip(","))["path"] for line in lines if line.startswith("  {")]
    assert paths == [node.path for node in plan("tiny-llama").nodes()]


def test_lock_hands_its_options_on(tmp_path):
    main(["lock", "tiny-llama", "--use", "core_attention=dot_product", "--mode", "infer", "--dtype", "bfloat16"])
    lock = read_lock("tiny-llama.lock.json")
    assert (lock.mode, lock.dtype, lock.device) == ("infer", "bfloat16", "cpu")
    assert {node.chosen for node in lock.nodes if node.slot == "core_attention"} == {"transom/dot_product"}


def test_lock_of_the_same_model_is_replaced_and_tells_what_changed(capsys):
    main(["lock", "tiny-llama"])
    capsys.readouterr()
    assert main(["lock", "tiny-llama", "--use", "layers.0.self_attention.core_attention=dot_product"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "layers.0.self_attention.core_attention: transom-torch-dot-product/torch_dot_product was locked, "
        "now transom/dot_product"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "OutputError: a.json is the lock of another model, tiny-gpt2, not of tiny-llama."),
        ("notes", "OutputError: a.json exists and is no lock, or cannot be read: not valid JSON"),
    ],
    ids=["another model", "no lock"],
)
def test_lock_leaves_another_file_alone_unless_forced(tmp_path, capsys, content, message):
    path = tmp_path / "a.json"
    if content is None:
        main(["lock", "tiny-gpt2", "--out", "a.json"])
    else:
        path.write_text(content)
    before = path.read_text()
    assert main(["lock", "tiny-llama", "--out", "a.json"]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert path.read_text() == before
    assert main(["lock", "tiny-llama", "--out", "a.json", "--force"]) == 0
    assert read_lock(path).name == "tiny-llama"


def test_lock_that_cannot_be_written_says_so(capsys):
    assert main(["lock", "tiny-llama", "--out", "no/such/folder.json"]) == 2
    assert capsys.readouterr().err.startswith(
        "OutputError: cannot write no/such/folder.json: No such file or directory."
    )


def test_plan_under_its_lock_prints_the_plan(capsys):
    main(["lock", "tiny-llama"])
    capsys.readouterr()
    assert main(["plan", "tiny-llama", "--locked", "tiny-llama.lock.json", "--lock-mode", "exact"]) == 0
    assert capsys.readouterr().out == f"{plan('tiny-llama')}\n"


def test_plan_under_a_lock_shows_where_it_departs(capsys):
    main(["lock", "tiny-llama"])
    capsys.readouterr()
    args = ["plan", "tiny-llama", "--locked", "tiny-llama.lock.json", "--use", "layers.2.mlp=transom/mlp"]
    assert main(args) == 0
    place = "layers.1.self_attention.core_attention"
    assert main([*args, "--use", f"{place}=dot_product"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("PlanMismatchError: the plan departs from its lock in 1 place (compatible).")
    assert (
        f"{place}: transom-torch-dot-product/torch_dot_product was locked for torch_dot_product | dot_product" in error
    )
    assert f"  Try:        leave out --use {place}=dot_product; or install what the lock names, " in error
    assert main([*args, "--use", f"{place}=dot_product", "--lock-mode", "free"]) == 0


def test_plan_under_an_exact_lock_compares_how_places_were_asked_for(capsys):
    main(["lock", "tiny-llama"])
    args = ["--locked", "tiny-llama.lock.json", "--use", "layers.2.mlp=transom/mlp", "--lock-mode", "exact"]
    assert main(["plan", "tiny-llama", *args]) == 2
    assert "layers.2.mlp: transom/mlp was locked for mlp, now transom/mlp is asked for" in capsys.readouterr().err


def test_plan_under_a_lock_that_is_missing_says_so(capsys):
    assert main(["plan", "tiny-llama", "--locked", "gone.json"]) == 2
    assert capsys.readouterr().err.startswith("SpecError: cannot read lock 'gone.json': No such file or directory.")
