"""The tokenizer of a folder's model, and the ids that begin and end its texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.checkpoint.hugging_face.folder import TOKENIZER, is_hugging_face
from transom.checkpoint.hugging_face.settings import CONFIG
from transom.checkpoint.store import open_checkpoint
from transom.errors import CheckpointError
from transom.pretrained.source import ORIGINAL
from transom.specs.train_spec import START
from transom.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["SpecialIds", "special_ids", "tokenizer_file", "tokenizer_of"]

_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a meaning of their own.

    Args:
        eos: those that end a text.
        start: what an encoder-decoder's text begins with; `None` = it is no encoder-decoder.
    """

    eos: tuple[int, ...] = ()
    start: int | None = None


def tokenizer_of(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of the model in a folder.

    Args:
        folder: of Hugging Face's form, or a run or one of its checkpoints.

    Returns:
        the tokenizer; that of a folder of Hugging Face's form adds special tokens, as the model saw them in training.

    Raises:
        CheckpointError: there is no model, or it has no tokenizer, or the tokenizer's file is missing or damaged.
        DataError: the package that reads it is not installed.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        if not (folder / TOKENIZER).is_file():
            raise _without(folder)
        return load_tokenizer(folder / TOKENIZER, special_tokens=True)
    opened = open_checkpoint(folder)
    name, is_converted = opened.manifest.tokenizer, ORIGINAL in opened.manifest.files
    # Conversions once wrote "bytes" where there was no tokenizer.
    if name is None or (name == "bytes" and is_converted):
        raise _without(folder, then=", and transom convert takes it along")
    return load_tokenizer(name if name == "bytes" else opened.file(name), special_tokens=is_converted)


def tokenizer_file(folder: str | Path) -> Path | None:
    """Find the file of the tokenizer of the model in a folder.

    Args:
        folder: as for `tokenizer_of`.

    Returns:
        its path; `None` = there is none, or the model's texts are bytes.

    Raises:
        CheckpointError: there is no model, or the file is missing or damaged.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        return folder / TOKENIZER if (folder / TOKENIZER).is_file() else None
    opened = open_checkpoint(folder)
    name = opened.manifest.tokenizer
    return None if name is None or name == "bytes" else opened.file(name)


def _without(folder: Path, then: str = "") -> CheckpointError:
    what = f"{folder} has no {TOKENIZER}; no other kind of tokenizer is read."
    hint = f"AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes it{then}"
    return CheckpointError(what, hint=hint, folder=folder)


def special_ids(folder: str | Path) -> SpecialIds:
    """Read which ids begin and end the texts of the model in a folder.

    Args:
        folder: as for `tokenizer_of`.

    Returns:
        the ids; of a model that a run trained, what an encoder-decoder's text begins with.

    Raises:
        CheckpointError: there is no model, or a file that says so is damaged.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    if is_hugging_face(folder):
        files = [folder / name for name in (CONFIG, _GENERATION) if (folder / name).is_file()]
    else:
        opened = open_checkpoint(folder)
        files = [opened.file(name) for name in (ORIGINAL, _GENERATION) if name in opened.manifest.files]
        if opened.manifest.spec.get("train", {}).get("objective") == "span_corruption":
            found["decoder_start_token_id"] = START
    for path in files:  # what is said of generation goes before what is said of the model
        found |= {name: value for name, value in _mapping(path).items() if value is not None}
    ends = found.get("eos_token_id", [])
    return SpecialIds(tuple(ends) if isinstance(ends, list) else (ends,), found.get("decoder_start_token_id"))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.", path=path) from error
    return found if isinstance(found, dict) else {}
