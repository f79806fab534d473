from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.errors import DataError
from transom.text.byte_tokenizer import ByteStream, ByteTokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_bytes_are_those_of_utf8_and_come_back(text):
    tokens = ByteTokenizer().encode(text)
    assert bytes(tokens) == text.encode()
    assert ByteTokenizer().decode(tokens.tolist()) == text


@given(TEXT)
def test_stream_gives_the_text_without_ever_half_a_character(text):
    stream = ByteStream()
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert stream.finish() == ""
    assert all(len(piece) <= 1 for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=30))
def test_stream_agrees_with_decoding_at_once_for_any_bytes(tokens):
    stream = ByteStream()
    assert "".join([*map(stream.feed, tokens), stream.finish()]) == ByteTokenizer().decode(tokens)


def test_stream_holds_an_unfinished_character_back_until_the_end():
    stream = ByteStream()
    assert [stream.feed(byte) for byte in "😀".encode()[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"


def test_ids_that_are_no_byte_become_the_replacement_character():
    assert ByteTokenizer().decode([97, 300, 98]) == "a\ufffdb"


def test_encode_refuses_half_a_surrogate_pair():
    with pytest.raises(
        DataError, match="the text is not valid Unicode: surrogates not allowed at character 2"
    ) as caught:
        ByteTokenizer().encode("ab\ud800")
    assert caught.value.position == 2
