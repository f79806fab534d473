from __future__ import annotations

import sys

import pytest
from transom.errors import DataError
from transom.text.hugging_face import HuggingFaceStream, HuggingFaceTokenizer

TEXTS = ["hello world", " hello", "añb 😀 hello", "", "日本語 there"]


@pytest.fixture
def tokenizer(tokenizer_file):
    return HuggingFaceTokenizer(tokenizer_file)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens.tolist()) == text
    assert len(tokens) <= len(text.encode())


def test_ids_are_those_of_the_package(tokenizer, tokenizer_file):
    import tokenizers

    peer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    assert tokenizer.encode("hello 😀").tolist() == peer.encode("hello 😀").ids
    assert tokenizer.vocab_size == peer.get_vocab_size()


@pytest.mark.parametrize("text", TEXTS)
def test_stream_gives_the_text_without_ever_half_a_character(tokenizer, text):
    stream = tokenizer.stream()
    pieces = [stream.feed(token) for token in tokenizer.encode(text).tolist()]
    assert "".join(pieces) == text
    assert stream.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_gives_what_is_unfinished_at_the_end(tokenizer):
    stream = HuggingFaceStream(tokenizer)
    tokens = tokenizer.encode("a😀").tolist()[:-1]
    assert "".join(map(stream.feed, tokens)) == "a"
    assert stream.finish() == "\ufffd"


def test_stream_keeps_the_spaces_of_a_tokenizer_that_strips_them_at_the_start(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    raw = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.save(str(tmp_path / "t.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "t.json")
    assert [tokenizer.decode([0]), tokenizer.decode([1])] == ["a", "b"]
    stream = tokenizer.stream()
    assert [stream.feed(0), stream.feed(1), stream.feed(1)] == ["a", " b", " b"]


def test_an_id_that_is_unknown_gives_nothing(tokenizer):
    assert tokenizer.decode([9999]) == ""
    assert tokenizer.stream().feed(9999) == ""


def test_encode_refuses_half_a_surrogate_pair(tokenizer):
    with pytest.raises(DataError, match="the text is not valid Unicode"):
        tokenizer.encode("\ud800")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer: Model missing") as caught:
        HuggingFaceTokenizer(path)
    assert caught.value.path == path


def test_a_missing_package_is_named_with_what_to_install(tokenizer_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="needs the package tokenizers, which is not installed") as caught:
        HuggingFaceTokenizer(tokenizer_file)
    assert "pip install 'transom[tokenizers]'" in str(caught.value)
