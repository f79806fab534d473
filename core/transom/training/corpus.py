"""Data sources to token ids: text files, folders of them, and arrays of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np

from transom.errors import DataError
from transom.training.default_corpus import default_text
from transom.training.token_sequence import TokenSequence

if TYPE_CHECKING:
    from transom.text.tokenizer import TokenArray, Tokenizer

__all__ = ["Split", "read_corpus", "split_corpus"]

_ASKED_BY = "train.data"
_TEXT_SUFFIXES = (".txt", ".md")
_ARRAY_SUFFIXES = (".npy", ".bin")
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Split:
    """A corpus in two: what is trained on, and what never is."""

    train: TokenSequence
    validation: TokenSequence


def read_corpus(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    token_dtype: str = "uint16",
    reserved: int = 0,
) -> TokenSequence:
    """Read every source, in order.

    Args:
        sources: each the path of a text file, of a folder whose ``*.txt`` and ``*.md`` are read in alphabetical order,
            or of token ids (``.npy``, or ``.bin`` without a header), which stay on the disk; or ``"default"``.
        tokenizer: for text.
        vocab_size: of the model; every id must be below it.
        token_dtype: of ``.bin`` files, little endian.
        reserved: ids at the vocabulary's end that no text may hold.

    Returns:
        all the ids; texts are separated by a newline.

    Raises:
        DataError: a source is missing, empty, unreadable or not what its name says, or an id is out of range.
    """
    vocabulary = _Vocabulary(vocab_size, reserved)
    arrays = [array for source in sources for array in _read_source(source, tokenizer, vocabulary, token_dtype)]
    return TokenSequence(arrays)


def split_corpus(tokens: TokenSequence, validation_fraction: float, sequence_length: int) -> Split:
    """Set the end of a corpus aside for validation.

    Args:
        tokens: the corpus.
        validation_fraction: share of the tokens that is set aside; at least one sequence.
        sequence_length: tokens of a sequence.

    Returns:
        both parts.

    Raises:
        DataError: a part would be too short for one sequence and the token that follows it.
    """
    needed = sequence_length + 1
    validation = max(round(len(tokens) * validation_fraction), needed)
    if len(tokens) - validation < needed:
        raise DataError(
            f"the data has {len(tokens)} tokens; training and validation need {needed} each.",
            asked_by=_ASKED_BY,
            hint=f"more data, or a train.sequence_length below {sequence_length}",
            tokens=len(tokens),
            needed=needed,
        )
    boundary = len(tokens) - validation
    return Split(tokens.part(0, boundary), tokens.part(boundary, len(tokens)))


@dataclass(frozen=True)
class _Vocabulary:
    """The ids of a model, the last of which may be reserved."""

    size: int
    reserved: int


def _read_source(source: str, tokenizer: Tokenizer, vocabulary: _Vocabulary, token_dtype: str) -> Iterator[TokenArray]:
    path = Path(source)
    if source == "default":
        yield _encode(default_text(), tokenizer, vocabulary, source)
    elif path.suffix in _ARRAY_SUFFIXES and path.is_file():
        array = _map_npy(path) if path.suffix == ".npy" else _map_bin(path, np.dtype(token_dtype).newbyteorder("<"))
        yield _in_range(array, vocabulary, source)
    elif path.is_file():
        yield _encode(_read_text(path), tokenizer, vocabulary, source)
    elif path.is_dir():
        for file in _text_files(path):
            yield _encode(_read_text(file), tokenizer, vocabulary, str(file))
    else:
        near = sorted(p.name for p in path.parent.iterdir())[:12] if path.parent.is_dir() else []
        _refuse(f"no file or folder {source!r}.", path, available=near)


def _text_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _TEXT_SUFFIXES and p.is_file())
    if not files:
        _refuse(f"the folder {folder} holds no text files ({', '.join('*' + s for s in _TEXT_SUFFIXES)}).", folder)
    return files


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        _refuse(f"cannot read {path}: {error.strerror}.", path, cause=error)
    except UnicodeDecodeError as error:
        _refuse(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.", path, cause=error)
    if not text.strip():
        _refuse(f"{path} is empty.", path)
    return text


def _encode(text: str, tokenizer: Tokenizer, vocabulary: _Vocabulary, source: str) -> TokenArray:
    return _in_range(tokenizer.encode(text + "\n"), vocabulary, source)


def _map_npy(path: Path) -> TokenArray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        _refuse(f"{path} is not an array of numbers in numpy's form.", path, cause=error)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        _refuse(f"{path} holds {array.dtype} of shape {list(array.shape)}, not one row of integers.", path)
    return cast("TokenArray", array)


def _map_bin(path: Path, dtype: np.dtype[np.generic]) -> TokenArray:
    size = path.stat().st_size
    if size == 0:
        _refuse(f"{path} is empty.", path)
    if size % dtype.itemsize:
        _refuse(f"{path} has {size} bytes, which is no whole number of {dtype.name} ids.", path)
    return np.memmap(path, dtype=dtype, mode="r")


def _in_range(array: TokenArray, vocabulary: _Vocabulary, source: str) -> TokenArray:
    if not len(array):
        _refuse(f"{source} holds no tokens.", Path(source))
    # In chunks, so that a mapped file passes through memory without filling it.
    chunks = [array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK)]
    lowest, highest = min(int(c.min()) for c in chunks), max(int(c.max()) for c in chunks)
    free = vocabulary.size - vocabulary.reserved
    if lowest < 0 or highest >= free:
        wrong = lowest if lowest < 0 else highest
        last = f", of which the last {vocabulary.reserved} are sentinels" if vocabulary.reserved else ""
        what = f"{source} holds the token id {wrong}; the model's are 0 to {vocabulary.size - 1}{last}."
        hint = f"vocab_size: {highest + 1 + vocabulary.reserved}, or another tokenizer"
        _refuse(what, Path(source), hint=None if lowest < 0 else hint, token=wrong)
    return array


def _refuse(
    what: str,
    path: Path,
    *,
    cause: Exception | None = None,
    available: Sequence[str] = (),
    hint: str | None = "a text file, a folder of *.txt and *.md, token ids (.npy, .bin), or default",
    token: int | None = None,
) -> NoReturn:
    raise DataError(what, asked_by=_ASKED_BY, available=available, hint=hint, path=path, token=token) from cause
