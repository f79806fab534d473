from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transom.training.sampler import SequenceSampler, validation_batches
from transom.training.token_sequence import TokenSequence


def _tokens(count):
    return TokenSequence([np.arange(count)])


def _starts(sampler, numbers):
    return [start for number in numbers for start in sampler.batch(number)[0][:, 0].tolist()]


@given(st.integers(6, 200), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_batches_are_sequences_of_the_tokens_and_what_follows(count, length, batch_size, seed):
    sampler = SequenceSampler(_tokens(count), length, batch_size, seed)
    for number in (0, 1, 50):
        tokens, labels = sampler.batch(number)
        assert tokens.shape == labels.shape == (batch_size, length)
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(length))
        assert torch.equal(labels, tokens + 1)
        assert int(labels.max()) < count


def test_an_epoch_takes_every_sequence_once():
    sampler = SequenceSampler(_tokens(103), 4, 6, seed=1)
    assert sampler.per_epoch == 24
    for epoch in range(3):
        starts = sorted(_starts(sampler, range(epoch * 4, epoch * 4 + 4)))
        assert np.diff(starts).tolist() == [4] * 23


def test_epochs_differ_in_order_and_first_token():
    sampler = SequenceSampler(_tokens(403), 4, 99, seed=1)
    epochs = [_starts(sampler, [epoch]) for epoch in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({min(epoch) for epoch in epochs}) > 2
    assert {token for epoch in epochs for start in epoch for token in range(start, start + 5)} > set(range(8, 395))


def test_batch_depends_on_seed_and_number_alone():
    sampler = SequenceSampler(_tokens(403), 4, 7, seed=1)
    expected = [sampler.batch(number)[0] for number in range(40)]
    again = SequenceSampler(_tokens(403), 4, 7, seed=1)
    assert all(torch.equal(again.batch(number)[0], expected[number]) for number in reversed(range(40)))
    assert not torch.equal(SequenceSampler(_tokens(403), 4, 7, seed=2).batch(0)[0], expected[0])


def test_shortest_data_gives_its_only_sequence():
    sampler = SequenceSampler(_tokens(5), 4, 2, seed=3)
    assert sampler.batch(8)[0].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("batches", "starts"), [(1, [0, 8]), (2, [0, 4, 8, 12]), (9, [0, 4, 8, 12, 16])], ids=["few", "more", "all"]
)
def test_validation_sequences_are_spread_and_do_not_overlap(batches, starts):
    found = list(validation_batches(_tokens(22), 4, 2, batches))
    assert [start for tokens, _ in found for start in tokens[:, 0].tolist()] == starts
    assert all(torch.equal(labels, tokens + 1) for tokens, labels in found)
    assert all(len(tokens) == 2 for tokens, _ in found[:-1])
