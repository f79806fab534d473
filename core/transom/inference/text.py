"""Generated tokens as text, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transom.text.tokenizer import Tokenizer

__all__ = ["stream_text"]


def stream_text(tokenizer: Tokenizer, prompt: Iterable[int], tokens: Iterable[int]) -> Iterator[str]:
    """Decode tokens that arrive one by one.

    Args:
        tokenizer: of the model.
        prompt: ids before them, which decide how the first is to be read; their text is left out.
        tokens: the ids that arrive.

    Yields:
        text as soon as it is complete: never part of a character, never an empty piece.

    Example:
        >>> from transom.text.byte_tokenizer import ByteTokenizer
        >>> list(stream_text(ByteTokenizer(), b"x", "é!".encode()))
        ['é', '!']
    """
    stream = tokenizer.stream()
    for token in prompt:
        stream.feed(token)
    yield from filter(None, map(stream.feed, tokens))
    yield from filter(None, [stream.finish()])
