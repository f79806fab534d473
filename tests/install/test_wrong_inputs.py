"""Wrong input on the command line: one clear error, exit code 2, and nothing lost or overwritten."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transom.cli.main import main

SPEC = """
name: small
vocab_size: 256
max_sequence_length: 16
config:
  num_layers: {layers}
  hidden_size: {hidden}
  num_attention_heads: 2
{extra}
train: {{steps: 2, batch_size: 1, eval_batches: 1, warmup_steps: 0, data: text.txt}}
"""

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def _spec(*, layers: object = 1, hidden: object = 8, extra: str = "") -> str:
    return SPEC.format(layers=layers, hidden=hidden, extra=extra)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Train a tiny model once; the folder holds its data, spec and run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    (folder / "small.yaml").write_text(_spec())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "small.yaml", "--out", "run"]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch) -> Path:
    """Give a copy of the trained folder, with everything beside it that the wrong inputs need."""
    work = tmp_path / "work"
    subprocess.run(["cp", "-r", trained, work], check=True)
    monkeypatch.chdir(work)
    files = {
        "wider.yaml": _spec(hidden=12),
        "string.yaml": _spec(hidden="wide"),
        "field.yaml": _spec(extra="  hiden_dropout: 0.1"),
        "slot.yaml": _spec(extra="use: {nrom: torch_norm}"),
        "name.yaml": _spec(extra="use: {norm: torch_nrom}"),
        "zero.yaml": _spec(layers=0),
        "twice.yaml": _spec(extra="  num_attention_heads: 4"),
        "broken.yaml": "config: [",
        "empty.yaml": "",
        "small.txt": _spec(),
        "nothing.txt": "",
        "other/notes.md": "mine",
        "occupied": "a file",
    }
    for name, text in files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)
    return work


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


WRONG = {
    "unknown verb": ("trian small.yaml", "Error: No such command 'trian'. Did you mean 'train'?"),
    "unknown option": ("train small.yaml --oot new", "No such option"),
    "number is a word": ("train small.yaml --out new --steps many", "Invalid value for '--steps': 'many' is not"),
    "malformed use": ("plan small.yaml --use norm", "Invalid value for '--use': 'norm' is not SLOT=NAME."),
    "unknown slot": ("train slot.yaml --out new", "UnknownSlotError: no slot is named 'nrom'."),
    "unknown slot in use": ("plan small.yaml --use nrom=a", "UnknownSlotError: no slot is named 'nrom'."),
    "unknown slot to list": ("list nrom", "UnknownSlotError: no slot is named 'nrom'."),
    "unknown name": ("train name.yaml --out new", "UnknownImplementationError: no norm is named 'torch_nrom'."),
    "unknown name in use": (
        "generate run --prompt a --use norm=b",
        "UnknownImplementationError: no norm is named 'b'.",
    ),
    "unknown config field": ("train field.yaml --out new", "no field is named 'hiden_dropout' in config"),
    "string for a number": ("train string.yaml --out new", "config.hidden_size: expected `int`, got `str`"),
    "impossible config": ("train zero.yaml --out new", "ConfigError: num_layers is 0"),
    "key given twice": ("train twice.yaml --out new", "SpecError: key 'num_attention_heads' is given twice"),
    "malformed file": ("train broken.yaml --out new", "SpecError: not valid YAML"),
    "empty file": ("plan empty.yaml", "SpecError: a spec is a mapping, not empty."),
    "unknown ending": ("plan small.txt", "SpecError: 'small.txt' has no ending that says how to read it."),
    "missing spec": ("train smal.yaml --out new", "SpecError: no spec file 'smal.yaml'."),
    "unknown recipe": ("plan tiny-lama", "SpecError: no spec file and no packaged recipe is named 'tiny-lama'."),
    "missing data": ("train small.yaml --out new --data no.txt", "DataError: "),
    "empty corpus": ("train small.yaml --out new --data nothing.txt", "DataError: "),
    "run is there": ("train small.yaml --out run", "OutputError: run already holds a run, and nothing is overwritten."),
    "folder is not empty": ("train small.yaml --out other", "OutputError: other is not an empty folder"),
    "folder is a file": ("train small.yaml --out occupied", "OutputError: occupied is not an empty folder"),
    "nothing to resume": ("train small.yaml --out new --resume", "OutputError: new holds no run to resume."),
    "run of another spec": ("train wider.yaml --out run --resume", "CheckpointError: the run is of another spec"),
    "missing checkpoint": ("generate no-such-run --prompt a", "CheckpointError: no folder no-such-run."),
    "no checkpoint there": ("generate other --prompt a", "CheckpointError: no checkpoint in other."),
    "empty prompt": ("generate run --prompt ", "InputError: the prompt is empty"),
    "unknown device": ("plan small.yaml --device teapot", "SpecError: "),
    "unknown device to train": ("train small.yaml --out new --device teapot", "SpecError: "),
    "unknown dtype": ("plan small.yaml --dtype float23", "SpecError: parameters cannot have the dtype 'float23'"),
}


@pytest.mark.parametrize(("line", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_gets_one_clear_error_and_changes_nothing(folder, capsys, line, message):
    before = _contents(folder)
    assert main(line.split(" ")) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert re.match(r"(\w+Error: |Usage: )", error)
    assert "Traceback" not in error
    assert _contents(folder) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "of another model"])
def test_damaged_checkpoint_is_refused(folder, capsys, damage):
    (weights,) = folder.glob("run/checkpoints/*/weights.safetensors")
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:-100])
    elif damage == "flipped":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "gone":
        weights.unlink()
    else:
        assert main(["train", "wider.yaml", "--out", "wider"]) == 0
        (others,) = folder.glob("wider/checkpoints/*/weights.safetensors")
        weights.write_bytes(others.read_bytes())
    before = _contents(folder)
    for line in (["generate", "run", "--prompt", "a"], ["train", "small.yaml", "--out", "run", "--resume"]):
        capsys.readouterr()
        assert main(line) == 2
        assert re.search(r"^CheckpointError: .*weights\.safetensors (is|has)", capsys.readouterr().err, re.MULTILINE)
    assert _contents(folder) == before


def test_full_disk_stops_the_run_and_keeps_its_last_checkpoint(folder):
    """A limit on the size of files refuses a write as a full disk does, in the kernel."""
    sizes = [path.stat().st_size for path in (folder / "run" / "checkpoints").rglob("*") if path.is_file()]
    limit = max(sizes) - 1
    code = (
        f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"from transom.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    before = _contents(folder / "run" / "checkpoints")
    command = [sys.executable, "-c", code, "train", "small.yaml", "--out", "run", "--resume", "--steps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "OutputError: " in done.stderr
    assert "Traceback" not in done.stderr
    assert _contents(folder / "run" / "checkpoints") == before
    assert main(["generate", "run", "--prompt", "a", "--max-new-tokens", "1"]) == 0
