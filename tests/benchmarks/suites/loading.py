"""Loading a checkpoint beside reading its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import transom
from safetensors.torch import load_file
from torch import nn

from benchmarks.contenders.weights import hugging_face_llama, saved
from benchmarks.monolith import Monolith
from benchmarks.settings import Settings
from benchmarks.suites.timing import timed
from benchmarks.table import Table

__all__ = ["loading"]

READ = "reading the file"


def loading(asked: Settings) -> Iterator[Table]:
    """Load a model from a folder of `transformers`, whose file is in the system's cache."""
    shape = asked.shape if asked.small else replace(asked.shape, hidden=1024, ffn=2816, heads=16, groups=8, vocab=16384)
    reference = hugging_face_llama(shape)
    with saved(reference) as folder:
        file = folder / "model.safetensors"
        size = file.stat().st_size / 2**20
        own = Monolith(shape)
        plain = transom.from_pretrained(folder)
        memory = bytearray(file.stat().st_size)
        steps: dict[str, Callable[[], object]] = {
            READ: lambda: _read(file),
            "reading it into memory that is there": lambda: _read_into(memory, file),
            "transom.from_pretrained": lambda: _gone(transom.from_pretrained(folder)),
            "transom, into a built model": _into(folder, plain),
            "transformers.from_pretrained": lambda: _gone(type(reference).from_pretrained(folder)),
            "monolith, safetensors and copies": lambda: _gone(own.load(load_file(file))),
        }
        note = (
            f"A file of {size:.0f} MiB in float32. Reading is `Path.read_bytes`, which fills memory that is new, as a "
            "model that is loaded does; one that is built already is like memory that is there. transformers copies "
            "nothing: its parameters are the mapped file, which is read when the model first runs."
        )
        yield timed("load a checkpoint", "building", steps, asked, tolerance=0.0, base=READ, note=note)


def _into(folder: Path, model: nn.Module) -> Callable[[], object]:
    from transom.checkpoint.hugging_face.folder import open_folder
    from transom.checkpoint.model_state import model_outlines, put_tensors, tensors_to_put

    def step() -> None:
        opened = open_folder(folder)
        put_tensors(tensors_to_put(model, opened.canonical(model_outlines(model))))

    return step


def _read(file: Path) -> None:
    file.read_bytes()


def _read_into(memory: bytearray, file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        opened.readinto(memory)


def _gone(_: object) -> None:
    """Let go of what was loaded, within the time."""
