from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transom.training import bigram
from transom.training.bigram import bigram_loss
from transom.training.token_sequence import TokenSequence

IDS = st.lists(st.integers(0, 4), min_size=2, max_size=30)


@given(IDS, IDS)
def test_bigram_loss_is_the_formula_in_its_docstring(train, scored):
    pairs, firsts = Counter(itertools.pairwise(train)), Counter(train[:-1])
    losses = [-math.log((pairs[a, b] + 1) / (firsts[a] + 5)) for a, b in itertools.pairwise(scored)]
    batch = torch.tensor([scored])
    found = bigram_loss(TokenSequence([np.array(train)]), [(batch[:, :-1], batch[:, 1:])], vocab_size=5)
    assert found == pytest.approx(sum(losses) / len(losses))


def test_bigram_loss_weighs_every_label_alike_when_batches_differ():
    train = TokenSequence([np.array([0, 1, 0, 1])])
    one, three = torch.tensor([[0, 1]]), torch.tensor([[1, 1, 1, 1]])
    found = bigram_loss(train, [(b[:, :-1], b[:, 1:]) for b in (one, three)], vocab_size=2)
    # After 0: 1 twice of 2. After 1: 0 once of 1.
    assert found == pytest.approx((-math.log(3 / 4) - 3 * math.log(1 / 3)) / 4)


def test_bigram_loss_is_not_measured_on_too_many_tokens(monkeypatch):
    monkeypatch.setattr(bigram, "MAX_TOKENS", 3)
    assert bigram_loss(TokenSequence([np.zeros(4, dtype=np.int64)]), [], vocab_size=2) is None
