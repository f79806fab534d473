"""Generated tokens as text, as they come, up to a text that ends them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, final

from transom.errors import InputError

if TYPE_CHECKING:
    from transom.text.tokenizer import Tokenizer

__all__ = ["StopTexts", "stream_text", "until_stop"]


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


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    r"""Pass text on up to the first of several texts, which is left out; after it no piece is asked for.

    Args:
        pieces: of text, as they come.
        stops: texts that end it.

    Returns:
        an iterator of text: as soon as it is known not to be the beginning of a stop, and never an empty piece.

    Raises:
        InputError: a stop is empty; at once.

    Example:
        >>> list(until_stop(["one\n", "\ntwo"], ["\n\n"]))
        ['one']
    """
    _check(stops)
    return _until_stop(pieces, stops)


def _until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        found = [at for at in (held.find(stop) for stop in stops) if at >= 0]
        end = min(found) if found else len(held) - _beginning(held, stops)
        if end:
            yield held[:end]
        if found:
            return
        held = held[end:]
    if held:
        yield held


@final
class StopTexts:
    """Whether the texts of a batch have come to one of several texts: for `transom.inference.generate.generate`.

    Args:
        tokenizer: of the model.
        prompts: ids of each row.
        stops: texts that end a row.

    Raises:
        InputError: a stop is empty.

    Example:
        >>> from transom.text.byte_tokenizer import ByteTokenizer
        >>> is_done = StopTexts(ByteTokenizer(), [b"x"], ["!"])
        >>> is_done(0, [97]), is_done(0, [97, 33])
        (False, True)
    """

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Iterable[int]], stops: Sequence[str]) -> None:
        _check(stops)
        self.stops = tuple(stops)
        self.streams = [tokenizer.stream() for _ in prompts]
        self.texts = ["" for _ in prompts]
        for stream, prompt in zip(self.streams, prompts, strict=True):
            for token in prompt:
                stream.feed(token)

    def __call__(self, row: int, tokens: Sequence[int]) -> bool:
        """Take the last of a row's new ids; say whether the row has come to a stop."""
        self.texts[row] += self.streams[row].feed(tokens[-1])
        return any(stop in self.texts[row] for stop in self.stops)


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop."""
    longest = max(map(len, stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def _check(stops: Sequence[str]) -> None:
    if "" in stops:
        raise InputError("a stop text is empty; it would end every row at once.", asked_by="stop")
