"""What a tokenizer does, and the way from a spec's `tokenizer` to one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transom.errors import DataError

__all__ = ["TextStream", "TokenArray", "Tokenizer", "load_tokenizer"]

TokenArray = np.ndarray[tuple[int], np.dtype[Any]]
"""Token ids: one dimension, any integer dtype."""


class TextStream(Protocol):
    """Turns token ids that arrive one by one into text; a character appears once all its tokens are there."""

    def feed(self, token: int) -> str:
        """Take one token id and return the text that is now complete; often empty."""
        ...

    def finish(self) -> str:
        """Return what is left, with U+FFFD for what never became a character."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: they are 0 ... vocab_size-1."""
        ...

    @property
    def file(self) -> Path | None:
        """The file that defines it; `None` when none is needed."""
        ...

    def encode(self, text: str) -> TokenArray:
        """Turn text into token ids."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn token ids into text."""
        ...

    def stream(self) -> TextStream:
        """Start decoding token ids that arrive one by one."""
        ...


def load_tokenizer(name: str | Path, *, special_tokens: bool = False) -> Tokenizer:
    """Load the tokenizer that a spec names.

    Args:
        name: ``"bytes"``, or the path of a Hugging Face ``tokenizer.json``.
        special_tokens: add what the file says that a text begins and ends with; bytes have none.

    Returns:
        the tokenizer.

    Raises:
        DataError: no such file, not a tokenizer, or the package that reads it is not installed.

    Example:
        >>> tokenizer = load_tokenizer("bytes")
        >>> tokenizer.encode("añb").tolist()
        [97, 195, 177, 98]
        >>> tokenizer.decode([97, 195, 177, 98])
        'añb'
    """
    if name == "bytes":
        from transom.text.byte_tokenizer import ByteTokenizer

        return ByteTokenizer()
    path = Path(name)
    if not path.is_file():
        what = f"no tokenizer file {str(path)!r}."
        raise DataError(what, asked_by="train.tokenizer", hint='"bytes", or the path of a tokenizer.json', path=path)
    from transom.text.hugging_face import HuggingFaceTokenizer

    return HuggingFaceTokenizer(path, special_tokens=special_tokens)
