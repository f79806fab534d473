"""What a checkpoint says of itself, in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from transom.errors import CheckpointError

__all__ = ["MANIFEST", "DataPosition", "FileRecord", "Manifest", "read_manifest"]

MANIFEST = "checkpoint.json"


class DataPosition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where in the data a run stands.

    Args:
        seed: of the order of the sequences.
        sequences: sequences consumed.
        fingerprint: of the training tokens; another means other data.
    """

    seed: int
    sequences: int
    fingerprint: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the checkpoint: its size and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``checkpoint.json``.

    Args:
        format: version of the checkpoint's form.
        transom: version of the core that wrote it.
        torch: version of torch.
        step: steps of the optimizer done.
        spec: of the run: the user's, with what the call changed.
        lock: who filled every slot of the model that was trained.
        tokenizer: ``"bytes"``, or the name of the checkpoint's file that holds it; `None` = there is none.
        data: where in the data the run stands; `None` = no run wrote it.
        tied: for each name of a parameter that is stored under another, that other name.
        files: every other file of the checkpoint.
        sizes: of the mesh of the ranks that wrote it, by dimension; empty = one process did.
    """

    format: Literal[1] = 1
    transom: str
    torch: str
    step: int
    spec: dict[str, Any]
    lock: dict[str, Any]
    tokenizer: str | None = "bytes"
    data: DataPosition | None = None
    tied: dict[str, str] = {}
    files: dict[str, FileRecord] = {}
    sizes: dict[str, int] = {}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        its manifest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest, strict=True)
    except OSError as error:
        reason = f"no checkpoint in {folder}" if not path.exists() else f"cannot read {path}: {error.strerror}"
        raise CheckpointError(
            f"{reason}.", hint="the folder of a run, or one of its checkpoints", folder=folder
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.", hint="an older checkpoint", folder=folder) from error
