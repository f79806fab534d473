"""Checkpoints on disk: a folder each, named by its step, beside one another."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from torch import Tensor, nn
from torch.optim import Optimizer

from transom.checkpoint.atomic import new_folder, remove_folder
from transom.checkpoint.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from transom.checkpoint.model_state import Placement, model_tensors, put_tensors, weights_to_put
from transom.checkpoint.optimizer_state import optimizer_tensors, state_to_put
from transom.checkpoint.random_state import random_tensors, restore_random
from transom.checkpoint.tensors import read_tensors, write_tensors
from transom.checkpoint.weight_writer import write_weights
from transom.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "digest",
    "find_checkpoint",
    "list_checkpoints",
    "open_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
    "save_weights",
]

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose manifest has been read.

    Args:
        folder: where it lies.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest

    def load_model(self, model: nn.Module) -> None:
        """Put the weights into a model of the same spec.

        Args:
            model: on any device, of any floating dtype.

        Raises:
            CheckpointError: the file is damaged or the weights are another model's; the model is untouched.
        """
        put_tensors(self._weights(model, self.file(WEIGHTS)))

    def fill_model(self, model: nn.Module) -> None:
        """Put the weights into a new model, which is to be dropped where this fails: they are compared meanwhile.

        Args:
            model: as for `load_model`.

        Raises:
            CheckpointError: as from `load_model`; the model may hold anything.
        """
        path = self._present(WEIGHTS)
        with ThreadPoolExecutor(max_workers=1) as beside:
            compared = beside.submit(self._compare, WEIGHTS)
            try:
                put_tensors(self._weights(model, path))
            finally:
                compared.result()  # of a damaged file this says more than what came of reading it

    def load_training(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put weights, optimizer state and random state back, so that training goes on as if never interrupted.

        Args:
            model: of the same spec.
            optimizer: over the same parameters.

        Raises:
            CheckpointError: a file is damaged or another model's; nothing was changed.
        """
        weights = self._weights(model, self.file(WEIGHTS))
        source = str(self.folder / OPTIMIZER)
        state = state_to_put(model, optimizer, read_tensors(self.file(OPTIMIZER)), source=source)
        restore_random(read_tensors(self.file(RANDOM)))
        put_tensors(weights)
        optimizer.state.clear()
        optimizer.state.update(state)

    def file(self, name: str) -> Path:
        """Give the path of one of the checkpoint's files, after comparing it with what the manifest says.

        Raises:
            CheckpointError: it is not there, or not as it was written.
        """
        path = self._present(name)
        self._compare(name)
        return path

    def _present(self, name: str) -> Path:
        path = self.folder / name
        record = self.manifest.files.get(name)
        if record is None or not path.is_file():
            raise CheckpointError(f"{path} is missing.", available=sorted(self.manifest.files), path=path)
        size = path.stat().st_size
        if size != record.bytes:
            what = f"{path} has {size} bytes; {record.bytes} were written."
            raise CheckpointError(what, hint="an older checkpoint", path=path)
        return path

    def _compare(self, name: str) -> None:
        path = self.folder / name
        if digest(path) != self.manifest.files[name].sha256:
            raise CheckpointError(f"{path} is not as it was written.", hint="an older checkpoint", path=path)

    def _weights(self, model: nn.Module, path: Path) -> Iterable[Placement]:
        stored = read_tensors(path)
        return weights_to_put(model, stored, self.manifest.tied, source=str(path))


def save_checkpoint(
    folder: Path, manifest: Manifest, model: nn.Module, optimizer: Optimizer, files: Mapping[str, bytes] | None = None
) -> Path:
    """Write a checkpoint: it appears complete, or not at all.

    Args:
        folder: the folder of all checkpoints, which exists.
        manifest: what it shall say of itself; `files` and `tied` are filled in here.
        model: its weights.
        optimizer: its state.
        files: further files, such as a tokenizer.

    Returns:
        the new folder, ``step-00000100`` for step 100.

    Raises:
        OutputError: it cannot be written, or the step has a checkpoint already; what was there before is untouched.
    """
    target = folder / f"step-{manifest.step:08d}"
    weights, tied = model_tensors(model)
    with new_folder(target) as partial:
        for name, contents in (files or {}).items():
            (partial / name).write_bytes(contents)
        write_tensors(partial / WEIGHTS, weights)
        write_tensors(partial / OPTIMIZER, optimizer_tensors(model, optimizer))
        write_tensors(partial / RANDOM, random_tensors())
        _write_manifest(partial, manifest, tied)
    return target


def save_weights(
    folder: Path,
    manifest: Manifest,
    outlines: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Path],
) -> None:
    """Write a checkpoint of weights alone, one after another: it appears complete, or not at all.

    Args:
        folder: of the checkpoint, new; its parent exists.
        manifest: what it shall say of itself; `files` is filled in here.
        outlines: shape and dtype of each weight, on the meta device.
        tensors: the weights, looked up one after another.
        files: further files, which are copied, by the names they get.

    Raises:
        OutputError: it cannot be written, or the folder exists already; nothing of it remains.
    """
    with new_folder(folder) as partial:
        for name, path in files.items():
            shutil.copyfile(path, partial / name)
        write_weights(partial / WEIGHTS, outlines, tensors)
        _write_manifest(partial, manifest, manifest.tied)


def _write_manifest(folder: Path, manifest: Manifest, tied: Mapping[str, str]) -> None:
    """Write what a checkpoint says of itself, after all its other files."""
    records = {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=digest(path)) for path in sorted(folder.iterdir())
    }
    manifest = msgspec.structs.replace(manifest, tied=dict(tied), files=records)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    for path in folder.iterdir():
        # safetensors makes files that only their owner may read.
        shutil.copymode(folder / MANIFEST, path)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the oldest first; empty when there are none or the folder does not exist."""
    found = [(int(m[1]), path) for path in folder.glob("step-*") if (m := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found)]


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints.

    Args:
        folder: of all checkpoints.
        keep: how many to keep; 0 = all.
    """
    for path in list_checkpoints(folder)[:-keep] if keep else []:
        remove_folder(path)


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint that a path means.

    Args:
        path: a checkpoint, or a run, of which the newest one is meant.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    found = list_checkpoints(path / FOLDER) or list_checkpoints(path)
    if found:
        return found[-1]
    what = f"no checkpoint in {path}." if path.is_dir() else f"no folder {path}."
    hint = "the folder of a run, or one of its checkpoints; of other models, one with a config.json"
    raise CheckpointError(what, hint=hint, folder=path)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint that a path means, as `find_checkpoint` does, and read what it says of itself.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    folder = find_checkpoint(path)
    return Checkpoint(folder, read_manifest(folder))


def digest(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
