from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from transom.errors import DataError
from transom.text.byte_tokenizer import ByteTokenizer
from transom.training.corpus import read_corpus, split_corpus
from transom.training.token_sequence import TokenSequence

BYTES = ByteTokenizer()


def _read(*sources, vocab_size=256, **kwargs):
    tokens = read_corpus([str(s) for s in sources], BYTES, vocab_size=vocab_size, **kwargs)
    return tokens.read(0, len(tokens))


def _text(*sources):
    return bytes(_read(*sources).tolist()).decode()


def test_text_file_is_read_as_utf8(tmp_path):
    (tmp_path / "a.log").write_bytes("\ufeffañb\r\n".encode())
    assert _text(tmp_path / "a.log") == "añb\r\n\n"


def test_folder_is_read_recursively_in_alphabetical_order(tmp_path):
    for name in ["b.txt", "a/z.MD", "a/c.txt", "skip.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert _text(tmp_path) == "a/c.txt\na/z.MD\nb.txt\n"


def test_sources_are_read_in_the_order_given(tmp_path):
    for name in ["a.txt", "b.txt"]:
        (tmp_path / name).write_text(name)
    assert _text(tmp_path / "b.txt", tmp_path / "a.txt") == "b.txt\na.txt\n"


def test_default_is_the_corpus_that_comes_with_python():
    from transom.training.default_corpus import default_text

    assert _text("default") == default_text() + "\n"


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_npy_ids_stay_on_the_disk(tmp_path, dtype):
    np.save(tmp_path / "t.npy", np.arange(300, dtype=dtype))
    tokens = read_corpus([str(tmp_path / "t.npy")], BYTES, vocab_size=300)
    assert tokens.read(0, 300).tolist() == list(range(300))
    assert all(isinstance(array, np.memmap) for array in tokens._arrays)


@pytest.mark.parametrize(("dtype", "form"), [("uint16", "<u2"), ("uint32", "<u4")])
def test_bin_ids_are_little_endian_and_stay_on_the_disk(tmp_path, dtype, form):
    (tmp_path / "t.bin").write_bytes(np.arange(300, dtype=form).tobytes())
    tokens = read_corpus([str(tmp_path / "t.bin")], BYTES, vocab_size=300, token_dtype=dtype)
    assert tokens.read(0, 300).tolist() == list(range(300))
    assert all(isinstance(array, np.memmap) for array in tokens._arrays)


def _file(name, contents):
    return lambda folder: (folder / name).write_bytes(contents)


def _npy(array):
    return lambda folder: np.save(folder / "x.npy", array)


REFUSED = {
    "missing": ("x.txt", _file("near.txt", b"a"), "no file or folder '.*x.txt'"),
    "missing folder": ("no/x.txt", lambda folder: None, "no file or folder '.*x.txt'"),
    "empty": ("x.txt", _file("x.txt", b""), "x.txt is empty"),
    "blank": ("x.txt", _file("x.txt", b" \n\n"), "x.txt is empty"),
    "latin-1": (
        "x.txt",
        _file("x.txt", "abañ".encode("latin-1")),
        "x.txt is not UTF-8 text: unexpected end of data at byte 3",
    ),
    "folder without text": ("", _file("x.py", b"a"), r"holds no text files \(\*.txt, \*.md\)"),
    "empty bin": ("x.bin", _file("x.bin", b""), "x.bin is empty"),
    "odd bin": ("x.bin", _file("x.bin", b"abc"), "x.bin has 3 bytes, which is no whole number of uint16 ids"),
    "large id in bin": ("x.bin", _file("x.bin", b"\x00\x01"), "x.bin holds the token id 256; the model's are 0 to 255"),
    "no npy": ("x.npy", _file("x.npy", b"abc"), "x.npy is not an array of numbers in numpy's form"),
    "objects": ("x.npy", _npy(np.array([{}])), "x.npy is not an array of numbers in numpy's form"),
    "empty npy": ("x.npy", _npy(np.zeros(0, dtype=np.uint16)), "x.npy holds no tokens"),
    "two dimensions": (
        "x.npy",
        _npy(np.zeros((2, 3), dtype=np.uint16)),
        r"x.npy holds uint16 of shape \[2, 3\], not one row",
    ),
    "floats": ("x.npy", _npy(np.zeros(3)), r"x.npy holds float64 of shape \[3\], not one row of integers"),
    "negative id": ("x.npy", _npy(np.array([1, -2])), "x.npy holds the token id -2; the model's are 0 to 255"),
    "large id": ("x.npy", _npy(np.array([1, 999])), "x.npy holds the token id 999; the model's are 0 to 255"),
}


@pytest.mark.parametrize(("name", "make", "text"), REFUSED.values(), ids=REFUSED)
def test_wrong_data_is_refused(tmp_path, name, make, text):
    make(tmp_path)
    with pytest.raises(DataError, match=text) as caught:
        _read(tmp_path / name)
    assert "Asked by:   train.data" in str(caught.value)
    assert caught.value.path == tmp_path / name


def test_missing_data_names_what_is_there(tmp_path):
    (tmp_path / "near.txt").write_text("a")
    with pytest.raises(DataError) as caught:
        _read(tmp_path / "x.txt")
    assert caught.value.available == ("near.txt",)


def test_an_id_out_of_range_says_which_vocabulary_would_do(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1, 999, 256]))
    with pytest.raises(DataError) as caught:
        _read(tmp_path / "x.npy")
    assert caught.value.token == 999
    assert caught.value.hint == "vocab_size: 1000, or another tokenizer"


def test_an_id_out_of_range_is_found_beyond_the_first_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("transom.training.corpus._CHUNK", 4)
    np.save(tmp_path / "x.npy", np.array([1] * 9 + [256]))
    with pytest.raises(DataError, match="token id 256"):
        _read(tmp_path / "x.npy")


def test_unreadable_text_gives_the_systems_reason(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("a")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*: Permission denied"):
        _read(path)


def test_split_takes_the_validation_part_from_the_end():
    split = split_corpus(TokenSequence([np.arange(100)]), 0.2, 4)
    assert split.train.read(0, 999).tolist() == list(range(80))
    assert split.validation.read(0, 999).tolist() == list(range(80, 100))


def test_split_sets_at_least_one_sequence_aside():
    split = split_corpus(TokenSequence([np.arange(100)]), 0.01, 9)
    assert (len(split.train), len(split.validation)) == (90, 10)


def test_split_refuses_what_is_too_short_for_a_sequence():
    text = re.escape("the data has 19 tokens; training and validation need 10 each.")
    with pytest.raises(DataError, match=text) as caught:
        split_corpus(TokenSequence([np.arange(19)]), 0.1, 9)
    assert (caught.value.tokens, caught.value.needed) == (19, 10)
    assert split_corpus(TokenSequence([np.arange(20)]), 0.1, 9)


def test_reading_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (sys.exit, (9,))

    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not an array of numbers"):
        _read(tmp_path / "x.npy")
