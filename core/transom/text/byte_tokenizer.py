"""The tokenizer that needs no file: a token is a byte of UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import numpy as np

from transom.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from transom.text.tokenizer import TextStream, TokenArray, Tokenizer

__all__ = ["ByteStream", "ByteTokenizer"]

_SIZE = 256


@final
class ByteStream:
    """Decodes bytes that arrive one by one; the bytes of an incomplete character are held back.

    Example:
        >>> stream = ByteStream()
        >>> [stream.feed(byte) for byte in "é!".encode()]
        ['', 'é', '!']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Take one byte and return the text that is now complete."""
        return self._decoder.decode(_bytes([token]))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character, else nothing."""
        return self._decoder.decode(b"", final=True)


@final
class ByteTokenizer:
    """Each byte of the text's UTF-8 is a token; there are no others."""

    vocab_size: int = _SIZE
    file: Path | None = None

    def encode(self, text: str) -> TokenArray:
        """Turn text into its bytes, as uint8.

        Raises:
            DataError: the text holds half of a surrogate pair, which no bytes stand for.
        """
        try:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            what = f"the text is not valid Unicode: {error.reason} at character {error.start}."
            raise DataError(what, hint="UTF-8 text", position=error.start) from error

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn bytes into text, with U+FFFD for what is none."""
        return _bytes(tokens).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """Start decoding bytes that arrive one by one."""
        return ByteStream()


def _bytes(tokens: Iterable[int]) -> bytes:
    # A model may have more ids than there are bytes; 0xFF, which UTF-8 never uses, becomes U+FFFD.
    return bytes(token if 0 <= token < _SIZE else 0xFF for token in tokens)


if TYPE_CHECKING:
    _tokenizer: Tokenizer = ByteTokenizer()
    _stream: TextStream = ByteStream()
