"""Span corruption: nothing is lost, and where is cut follows from the seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transom.errors import SpecError
from transom.specs.train_spec import START
from transom.training.span_corruption import SpanCorruption

V = 1000


def put_back(read: list[int], labels: list[int], sentinels: set[int]) -> list[int]:
    """Fill what was cut out back in."""
    spans: dict[int, list[int]] = {}
    for token in labels:
        if token in sentinels:
            spans[token] = span = []
        else:
            span.append(token)
    return [token for each in read for token in (spans[each] if each in sentinels else [each])]


@given(
    length=st.integers(2, 200),
    density=st.floats(0.01, 0.99),
    span=st.floats(1, 20),
    seed=st.integers(0, 2**63 - 1),
    number=st.integers(-1, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_what_is_cut_out_is_what_is_written(length, density, span, seed, number):
    cut = SpanCorruption(length=length, vocab_size=V, noise_density=density, mean_span_length=span, seed=seed)
    tokens = torch.randint(1, V - cut.sentinels, (2, length))
    read, written, labels = cut(tokens, number)
    sentinels = set(range(V - cut.sentinels, V))
    assert read.shape == (2, length - cut.noise + cut.spans)
    assert labels.shape == written.shape == (2, cut.noise + cut.spans + 1)
    assert torch.equal(written, torch.cat([torch.full((2, 1), START), labels[:, :-1]], dim=1))
    for row in range(2):
        assert put_back(read[row].tolist(), labels[row].tolist(), sentinels) == tokens[row].tolist()
        found = [token for token in labels[row].tolist() if token in sentinels]
        assert found == list(range(V - 1, V - 1 - cut.sentinels, -1))


@pytest.mark.parametrize(("length", "noise", "spans"), [(512, 77, 26), (256, 38, 13), (2, 1, 1)])
def test_the_published_share_is_cut_out_in_spans_of_the_published_length(length, noise, spans):
    cut = SpanCorruption(length=length, vocab_size=V)
    assert (cut.noise, cut.spans, cut.sentinels) == (noise, spans, spans + 1)


def starts_of(read: Tensor, cut: SpanCorruption) -> list[tuple[int, ...]]:
    return [tuple((row >= V - cut.sentinels).nonzero().flatten().tolist()) for row in read]


def test_where_is_cut_follows_from_seed_number_and_sequence():
    tokens = torch.randint(1, 500, (4, 64), generator=torch.Generator().manual_seed(0))
    cut = SpanCorruption(length=64, vocab_size=V, seed=3)
    first, *_ = cut(tokens, 5)
    assert torch.equal(first, cut(tokens, 5)[0])
    assert torch.equal(first[2:], cut(tokens[2:], 5)[0])  # a rank's share of the batch
    assert len({*starts_of(first, cut)}) == 4
    assert not torch.equal(first, cut(tokens, 6)[0])
    assert not torch.equal(first, SpanCorruption(length=64, vocab_size=V, seed=4)(tokens, 5)[0])


def test_every_way_to_cut_is_as_probable_as_the_others():
    cut = SpanCorruption(length=6, vocab_size=V, noise_density=0.5, mean_span_length=1.5)
    assert (cut.noise, cut.spans) == (3, 2)
    tokens = torch.arange(1, 7).expand(1, 6)
    ways = Counter(
        starts_of(cut(tokens, number)[0], cut)[0] + tuple(cut(tokens, number)[2][0].tolist()) for number in range(2000)
    )
    assert len(ways) == 4  # two ways to cut the kept tokens, two to cut the others
    assert all(400 < count < 600 for count in ways.values())


@pytest.mark.parametrize(
    ("fields", "text", "path"),
    [
        ({"length": 1}, "nothing can be cut out of sequences of 1 token", "sequence_length"),
        ({"length": 512, "vocab_size": 27}, "27 sentinels are needed, and the vocabulary has 27 ids", "vocab_size"),
    ],
    ids=["too short", "no room"],
)
def test_what_cannot_be_cut_is_refused(fields, text, path):
    with pytest.raises(SpecError, match=text) as error:
        SpanCorruption(**({"vocab_size": V} | fields))
    assert error.value.path == path


@pytest.mark.parametrize("length", [2, 3, 24, 256])
def test_lengths_are_those_of_what_is_read_and_written(length: int) -> None:
    cut = SpanCorruption(length=length, vocab_size=300)
    read, written, labels = cut(torch.ones(1, length, dtype=torch.long), number=0)
    assert cut.lengths == (read.shape[1], written.shape[1])
    assert labels.shape == written.shape
