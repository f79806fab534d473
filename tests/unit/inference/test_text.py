from __future__ import annotations

from transom.inference.text import stream_text
from transom.text.byte_tokenizer import ByteTokenizer


def test_text_comes_in_whole_characters_and_without_empty_pieces():
    assert list(stream_text(ByteTokenizer(), b"x", "aé😀".encode())) == ["a", "é", "😀"]


def test_text_ends_with_what_is_unfinished():
    assert list(stream_text(ByteTokenizer(), b"x", "a😀".encode()[:-1])) == ["a", "\ufffd"]


def test_text_goes_on_within_a_character_of_the_prompt():
    assert list(stream_text(ByteTokenizer(), "é".encode()[:1], "é!".encode()[1:])) == ["é", "!"]


def test_text_comes_as_soon_as_its_token_does():
    asked = []

    def tokens():
        for token in b"abc":
            asked.append(token)
            yield token

    pieces = stream_text(ByteTokenizer(), b"", tokens())
    assert next(pieces) == "a"
    assert asked == [97]
