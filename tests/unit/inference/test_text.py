from __future__ import annotations

import pytest
from transom.errors import InputError
from transom.inference.text import StopTexts, stream_text, until_stop
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


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one. ", "two"], [". "], ["one"]),
        (["a", "b", "c", "d"], ["cd"], ["a", "b"]),
        (["a", "b", "c", "x"], ["cd"], ["a", "b", "cx"]),
        (["aab", "aac"], ["aac"], ["aab"]),
        (["abab", "c"], ["ababc"], []),
        (["xxabxx"], ["b", "ab"], ["xxa"[:2]]),
        (["a", "b"], [], ["a", "b"]),
        (["ends with a"], ["ab"], ["ends with ", "a"]),
        ([], ["a"], []),
    ],
)
def test_text_ends_before_the_first_stop(pieces, stops, expected):
    assert list(until_stop(pieces, stops)) == expected


def test_after_a_stop_nothing_is_asked_for():
    pieces = iter(["a", "!", "b"])
    assert list(until_stop(pieces, ["!"])) == ["a"]
    assert list(pieces) == ["b"]


def test_rows_come_to_stops_by_themselves():
    is_done = StopTexts(ByteTokenizer(), [b"x!", b"\xc3"], ["!", "é"])
    assert not is_done(0, b"a")
    assert not is_done(1, b"\xa8")  # è
    assert is_done(0, b"a!")
    assert not is_done(1, b"\xa8\xc3")
    assert is_done(1, b"\xa8\xc3\xa9")


@pytest.mark.parametrize("make", [lambda: until_stop([], ["a", ""]), lambda: StopTexts(ByteTokenizer(), [], [""])])
def test_an_empty_stop_is_refused_at_once(make):
    with pytest.raises(InputError, match="a stop text is empty; it would end every row at once"):
        make()
