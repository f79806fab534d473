"""Tokenizers in Hugging Face's `tokenizer.json` form, read by their package `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from transom.errors import DataError

if TYPE_CHECKING:
    from transom.text.tokenizer import TextStream, TokenArray, Tokenizer

__all__ = ["HuggingFaceStream", "HuggingFaceTokenizer"]

_UNFINISHED = "\ufffd"


@final
class HuggingFaceStream:
    """Decodes ids that arrive one by one.

    What an id stands for may depend on those before it (a space, the first bytes of a character), so each new id is
    decoded together with the piece before it, and held back while the text ends in the middle of a character.

    Args:
        tokenizer: decodes whole lists of ids.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        self._decode = tokenizer.decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """Take one id and return the text that is now complete."""
        self._pending.append(token)
        piece = self._piece()
        if piece.endswith(_UNFINISHED) or not piece:
            return ""
        self._context, self._pending = self._pending, []
        return piece

    def finish(self) -> str:
        """Return what is left, with U+FFFD for what never became a character."""
        piece = self._piece()
        self._context, self._pending = self._pending, []
        return piece

    def _piece(self) -> str:
        return self._decode(self._context + self._pending)[len(self._decode(self._context)) :]


@final
class HuggingFaceTokenizer:
    """A tokenizer from a ``tokenizer.json``.

    Args:
        file: the ``tokenizer.json``.
        special_tokens: add what the file says that a text begins and ends with, as `encode` of the model's own
            library does.

    Raises:
        DataError: the file is not one, or the package ``tokenizers`` is not installed.
    """

    def __init__(self, file: Path, *, special_tokens: bool = False) -> None:
        self.file: Path | None = file
        self._special_tokens = special_tokens
        self._tokenizer = _read(file)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> TokenArray:
        """Turn text into ids, as uint32.

        Raises:
            DataError: the text holds half of a surrogate pair.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=self._special_tokens).ids
        except TypeError as error:
            raise DataError("the text is not valid Unicode.", hint="UTF-8 text") from error
        return np.array(ids, dtype=np.uint32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn ids into text; an id that the tokenizer does not know gives nothing."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def stream(self) -> TextStream:
        """Start decoding ids that arrive one by one."""
        return HuggingFaceStream(self)


def _read(file: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            f"reading {file} needs the package tokenizers, which is not installed.",
            asked_by="train.tokenizer",
            hint="pip install 'transom[tokenizers]', or tokenizer: bytes",
            path=file,
        ) from error
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        what = f"{file} is not a tokenizer: {error}."
        raise DataError(what, asked_by="train.tokenizer", hint="a tokenizer.json", path=file) from error


if TYPE_CHECKING:
    _tokenizer: Tokenizer = HuggingFaceTokenizer(Path())
