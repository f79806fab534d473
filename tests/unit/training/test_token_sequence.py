from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.training.token_sequence import TokenSequence


@given(st.lists(st.lists(st.integers(0, 255), max_size=6), max_size=5), st.integers(0, 20), st.integers(0, 20))
def test_sequence_reads_as_the_arrays_joined(parts, start, length):
    joined = [token for part in parts for token in part]
    tokens = TokenSequence([np.array(part, dtype=np.uint8) for part in parts])
    assert len(tokens) == len(joined)
    assert tokens.read(start, length).tolist() == joined[start : start + length]
    assert tokens.part(start, start + length).read(0, 99).tolist() == joined[start : start + length]
    assert tokens.read(start, length).dtype == np.int64


def test_sequence_copies_nothing_until_read():
    array = np.arange(10)
    tokens = TokenSequence([array]).part(2, 8)
    array[3] = 77
    assert tokens.read(0, 3).tolist() == [2, 77, 4]


def test_fingerprint_knows_ids_and_nothing_else():
    ids = np.arange(1000) % 7
    whole = TokenSequence([ids]).fingerprint()
    assert TokenSequence([ids[:400].astype(np.uint8), ids[400:].astype(np.uint32)]).fingerprint() == whole
    assert TokenSequence([ids[:-1]]).fingerprint() != whole
    assert TokenSequence([ids[::-1]]).fingerprint() != whole


@pytest.mark.parametrize("place", [0, 1_100_000, 2_199_999], ids=["first", "middle", "last"])
def test_fingerprint_of_a_long_sequence_looks_at_samples_of_it(place):
    # 256 samples of 4096 ids, evenly spread: 2.2 million ids leave gaps as long as the samples.
    ids = np.zeros(2_200_000, dtype=np.uint8)
    other = ids.copy()
    other[max(0, place - 8192) : place + 8192] = 1
    assert TokenSequence([ids]).fingerprint() != TokenSequence([other]).fingerprint()
    assert TokenSequence([ids]).fingerprint() != TokenSequence([ids[:-1]]).fingerprint()
