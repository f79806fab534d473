from __future__ import annotations

import pytest
from transom.errors import DataError
from transom.text.byte_tokenizer import ByteTokenizer
from transom.text.hugging_face import HuggingFaceTokenizer
from transom.text.tokenizer import load_tokenizer


def test_load_tokenizer_gives_bytes_by_name():
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


def test_load_tokenizer_reads_a_file(tokenizer_file):
    assert isinstance(load_tokenizer(tokenizer_file), HuggingFaceTokenizer)
    assert load_tokenizer(str(tokenizer_file)).file == tokenizer_file


def test_load_tokenizer_says_so_when_there_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer file '.*none\.json'") as caught:
        load_tokenizer(tmp_path / "none.json")
    assert caught.value.path == tmp_path / "none.json"
    assert "Asked by:   train.tokenizer" in str(caught.value)
