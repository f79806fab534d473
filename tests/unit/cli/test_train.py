"""`transom train`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transom.checkpoint.store import open_checkpoint
from transom.cli.main import main
from transom.registry.registry import Registry

SCRIPT = "import sys; from transom.cli.main import main; sys.exit(main())"

SPEC = """
name: small
vocab_size: 256
max_sequence_length: 8
config: {num_layers: 1, hidden_size: 8, num_attention_heads: 2}
train: {data: text.txt, steps: 4, batch_size: 2, log_every: 1, checkpoint_every: 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with a spec and a text."""
    (tmp_path / "small.yaml").write_text(SPEC)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_prints_a_summary_and_the_next_command(here, capsys):
    assert main(["train", "small.yaml"]) == 0
    out, err = capsys.readouterr()
    rows = dict(line.split(":", 1) for line in out.splitlines())
    assert rows["trained"].split(", ")[1:3] == ["4 steps", "64 tokens"]
    assert float(rows["training loss"]) > 0
    assert "(a bigram model: " in rows["validation loss"]
    assert rows["loss curve"].strip() == "runs/small/loss.png"
    assert rows["checkpoint"].strip() == "runs/small/checkpoints/step-00000004"
    assert rows["try it"].strip() == 'transom generate runs/small --prompt "The "'
    assert err.splitlines()[0] == "training small: 4 steps"
    assert (here / "runs/small/loss.png").stat().st_size > 1000


def test_train_proposes_to_generate_only_where_who_trained_can(site, make_card, monkeypatch, capsys):
    code = "from transom.transformer.dot_product_attention import DotProductAttention as Narrow"
    site.install(
        "acme-narrow",
        {"core_attention": {"narrow": "Narrow"}},
        code=code,
        card=make_card("core_attention.narrow", features=["causal", "dropout", "gqa"]),
    )
    monkeypatch.setattr("transom.registry.registry._DEFAULT", Registry())
    assert main(["train", "small.yaml", "--out", "a", "--use", "core_attention=narrow"]) == 0
    assert "try it" not in capsys.readouterr().out
    assert main(["generate", "a", "--prompt", "to", "--max-new-tokens", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ResolutionError: core_attention 'narrow' cannot serve."
    assert lines[1] == "  Asked by:   use.core_attention in a"
    assert lines[-1] == "  Try:        --use core_attention=dot_product"
    assert main(["generate", "a", "--prompt", "to", "--max-new-tokens", "2", *lines[-1].split()[1:]]) == 0


def test_train_prints_json_alone_on_stdout(capsys):
    assert main(["train", "small.yaml", "--out", "a", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["folder"], result["checkpoint"]) == (4, "a", "a/checkpoints/step-00000004")
    assert result["validation_loss"] > 0


def test_train_takes_steps_data_seed_and_use(here):
    (here / "other.txt").write_text("something else entirely. " * 20)
    arguments = ["--steps", "3", "--data", "text.txt", "--data", "other.txt", "--seed", "5", "--use", "mlp=mlp"]
    assert main(["train", "small.yaml", "--out", "a", *arguments]) == 0
    manifest = open_checkpoint("a").manifest
    assert manifest.step == 3
    assert manifest.spec["use"] == {"mlp": "mlp"}
    settings = manifest.spec["train"]
    data = [str(here / "text.txt"), str(here / "other.txt")]
    assert (settings["steps"], settings["data"], settings["seed"]) == (3, data, 5)


def test_train_takes_a_locks_choices_and_refuses_others(here, capsys):
    main(["lock", "small.yaml", "--use", "core_attention=dot_product", "--out", "a.json"])
    (here / "small.yaml").write_text(f"{SPEC}use: {{core_attention: torch_dot_product | dot_product}}\n")
    assert main(["train", "small.yaml", "--out", "a", "--locked", "a.json"]) == 0
    chosen = {
        node["chosen"] for node in open_checkpoint("a").manifest.lock["nodes"] if node["slot"] == "core_attention"
    }
    assert chosen == {"transom/dot_product"}
    capsys.readouterr()
    assert main(["train", "small.yaml", "--out", "b", "--locked", "a.json", "--lock-mode", "exact"]) == 2
    assert capsys.readouterr().err.startswith("PlanMismatchError: the plan departs from its lock in 1 place (exact).")
    assert not (here / "b").exists()


def test_train_resumes(capsys):
    assert main(["train", "small.yaml", "--out", "a"]) == 0
    assert main(["train", "small.yaml", "--out", "a", "--resume", "--steps", "6"]) == 0
    assert "training small: 6 steps, 4 done" in capsys.readouterr().err
    assert open_checkpoint("a").manifest.step == 6


def test_train_resumes_from_another_working_directory(here, capsys, monkeypatch):
    assert main(["train", "small.yaml", "--out", "a"]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    capsys.readouterr()
    assert main(["train", str(here / "a" / "spec.json"), "--out", str(here / "a"), "--resume", "--steps", "5"]) == 0
    assert "training small: 5 steps, 4 done" in capsys.readouterr().err


REFUSED = {
    "unknown recipe": (["tiny-lama"], "SpecError", "tiny-llama?"),
    "missing data": (["small.yaml", "--data", "nowhere.txt"], "DataError", "no file or folder 'nowhere.txt'"),
    "empty data": (["small.yaml", "--data", "empty.txt"], "DataError", "empty.txt is empty"),
    "unknown name": (["small.yaml", "--use", "norm=trch_norm"], "UnknownImplementationError", "Try:        torch_norm"),
    "unknown slot": (["small.yaml", "--use", "nrom=torch_norm"], "UnknownSlotError", "norm?"),
    "no steps": (["small.yaml", "--steps", "0"], "Error", "0 is not in the range x>=1"),
    "words for a number": (["small.yaml", "--steps", "many"], "Error", "'many' is not a valid integer range"),
    "nothing to resume": (["small.yaml", "--out", "new", "--resume"], "OutputError", "new holds no run to resume"),
    "a used folder": (["small.yaml", "--out", "used"], "OutputError", "used is not an empty folder"),
    "string for a number": (["wrong.yaml"], "SpecError", "train.steps"),
}


@pytest.mark.parametrize(("arguments", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_train_refuses_with_one_error_and_leaves_nothing(here, capsys, arguments, error, text):
    (here / "empty.txt").write_text("")
    (here / "used").mkdir()
    (here / "used" / "thesis.tex").write_text("precious")
    (here / "wrong.yaml").write_text(SPEC.replace("steps: 4", "steps: four"))
    before = sorted(here.rglob("*"))
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert error in err
    assert text in err
    assert "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_train_refuses_a_folder_that_holds_a_run(capsys):
    assert main(["train", "small.yaml", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["train", "small.yaml", "--out", "a"]) == 2
    err = capsys.readouterr().err
    assert "OutputError: a already holds a run, and nothing is overwritten." in err
    assert "--resume" in err


def test_train_says_how_to_go_on_when_interrupted(here):
    command = [sys.executable, "-c", SCRIPT, "train", "small.yaml", "--out", "my run", "--steps", "1000000"]
    metrics = here / "my run" / "metrics.jsonl"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    assert "Go on with:  transom train small.yaml --out 'my run' --resume" in err
    assert "Traceback" not in err
    done = open_checkpoint("my run").manifest.step
    assert done == json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert not list((here / "my run").rglob("*.partial"))


def test_train_says_nothing_of_a_run_that_never_began(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("transom.training.run.read_corpus", interrupted)
    assert main(["train", "small.yaml"]) == 130
    assert "Go on with" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "generate"])
def test_help_loads_no_torch(verb):
    code = f"import sys; from transom.cli.main import main; main(['{verb}', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"transom {verb} " in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_train_leaves_no_folder_for_a_device_that_is_not_here(tmp_path, capsys):
    out = tmp_path / "runs" / "first"
    assert main(["train", "tiny-llama", "--device", "cuda:63", "--out", str(out)]) == 2
    assert "SpecError: device 'cuda:63' cannot be used here: " in capsys.readouterr().err
    assert not out.parent.exists()


def test_train_quotes_the_option_that_is_wrong(tmp_path, capsys):
    assert main(["train", "tiny-llama", "--use", "norm=torch_nrm", "--out", str(tmp_path / "first")]) == 2
    assert "\n  Asked by:   --use norm=torch_nrm\n" in capsys.readouterr().err


def test_train_leaves_options_out_where_the_call_names_another_and_resumes(here, capsys):
    spec = f"{SPEC}use: {{kv_cache: paged}}\noptions: {{kv_cache: {{block_size: 4}}}}\n"
    (here / "small.yaml").write_text(spec)
    assert main(["train", "small.yaml", "--out", "a", "--use", "kv_cache=static"]) == 0
    assert "options.kv_cache in small.yaml has no effect at cache: --use kv_cache=static" in capsys.readouterr().err
    assert main(["train", "small.yaml", "--out", "a", "--resume", "--steps", "6"]) == 0
    assert main(["train", "a", "--out", "b", "--steps", "1"]) == 0  # the run's own spec stands by itself
