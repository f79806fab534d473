from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transom.errors import InputError
from transom.inference.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, penalise_repetition

LOGITS = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.75, 2.0, 4.0]), min_size=1, max_size=12)


def _ranked(logits):
    """Ids from the most to the least probable, the lower id first of equals."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def _kept(filtered):
    return {i for i, value in enumerate(filtered.tolist()) if value != -math.inf}


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_first_of_the_ranking(logits, k):
    filtered = keep_top_k(torch.tensor(logits), k)
    assert _kept(filtered) == set(_ranked(logits)[:k])
    assert all(filtered[i] == logits[i] for i in _kept(filtered))


@given(LOGITS, st.floats(0.01, 1.0))
def test_top_p_keeps_the_shortest_start_of_the_ranking_that_reaches_p(logits, p):
    total = math.fsum(math.exp(x) for x in logits)
    shares = [math.exp(logits[i]) / total for i in _ranked(logits)]
    sums = [math.fsum(shares[:n]) for n in range(1, len(shares) + 1)]
    if min(abs(s - p) for s in sums) < 1e-9:
        return  # rounding decides
    wanted = next((n for n, s in enumerate(sums, 1) if s >= p), len(sums))
    filtered = keep_top_p(torch.tensor(logits, dtype=torch.float64), p)
    assert _kept(filtered) == set(_ranked(logits)[:wanted])
    assert all(filtered[i] == logits[i] for i in _kept(filtered))


def test_filters_treat_every_row_alone():
    rows = torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 2.9]])
    assert torch.equal(keep_top_k(rows, 1), torch.stack([keep_top_k(row, 1) for row in rows]))
    assert torch.equal(keep_top_p(rows, 0.9), torch.stack([keep_top_p(row, 0.9) for row in rows]))


def test_top_p_of_one_keeps_all():
    assert _kept(keep_top_p(torch.tensor([-9.0, 0.0, 9.0]), 1.0)) == {0, 1, 2}


def _shares(sampling, logits, draws=4000):
    generator = torch.Generator().manual_seed(0)
    picks = torch.tensor([sampling.pick(torch.tensor(logits), generator) for _ in range(draws)])
    return (torch.bincount(picks, minlength=len(logits)) / draws).tolist()


def test_pick_follows_the_softmax_of_the_logits_over_the_temperature():
    logits = [1.0, 0.0, 2.0]
    weights = [math.exp(x / 0.5) for x in logits]
    # Four standard deviations of a share of 4000 draws are at most 0.032.
    assert _shares(Sampling(temperature=0.5), logits) == pytest.approx([w / sum(weights) for w in weights], abs=0.032)


def test_pick_draws_from_what_the_filters_keep():
    assert _shares(Sampling(top_k=2), [1.0, 0.0, 2.0, -1.0], 200)[1::2] == [0, 0]
    assert _shares(Sampling(top_p=0.5), [1.0, 0.0, 2.0, -1.0], 50) == [0, 0, 1, 0]


def test_filters_apply_after_the_temperature():
    # At temperature 4 the first token's share falls from 0.95 to 0.68, and the nucleus of 0.9 needs the second too.
    assert _shares(Sampling(temperature=4.0, top_p=0.9), [3.0, 0.0], 200)[1] > 0
    assert _shares(Sampling(temperature=1.0, top_p=0.9), [3.0, 0.0], 200)[1] == 0


@pytest.mark.parametrize("sampling", [Sampling(greedy=True), Sampling(temperature=0.0), Sampling(top_k=1)])
def test_pick_takes_the_most_probable_when_greedy(sampling):
    generator = torch.Generator().manual_seed(0)
    assert {sampling.pick(torch.tensor([0.0, 3.0, 2.9]), generator) for _ in range(20)} == {1}


def test_greedy_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    Sampling(greedy=True).pick(torch.tensor([0.0, 1.0]), generator)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("temperature", -0.1, "0 or more, and finite"),
        ("temperature", math.nan, "0 or more, and finite"),
        ("top_k", 0, "1 or more"),
        ("top_p", 0.0, "above 0, up to 1"),
        ("top_p", 1.1, "above 0, up to 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0, and finite"),
        ("repetition_penalty", math.inf, "above 0, and finite"),
    ],
)
def test_sampling_refuses_a_value_out_of_range(name, value, right):
    with pytest.raises(InputError, match=f"{name} is {value}; it must be {right}") as caught:
        Sampling(**{name: value})
    assert caught.value.name == name


@given(LOGITS, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_near_the_most_probable(logits, p):
    wanted = {i for i, x in enumerate(logits) if math.exp(x - max(logits)) >= p}
    if any(abs(math.exp(x - max(logits)) - p) < 1e-9 for x in logits):
        return  # rounding decides
    assert _kept(keep_min_p(torch.tensor(logits, dtype=torch.float64), p)) == wanted


def test_the_penalty_moves_what_was_seen_away_from_the_likely():
    logits = torch.tensor([[3.0, -3.0, 0.0, 3.0]])
    seen = torch.tensor([[True, True, True, False]])
    assert penalise_repetition(logits, seen, 1.5).tolist() == [[2.0, -4.5, 0.0, 3.0]]
    assert Sampling(repetition_penalty=1.5, greedy=True).filtered(logits, seen).tolist() == [[2.0, -4.5, 0.0, 3.0]]
    assert Sampling(greedy=True).filtered(logits, seen) is logits


def test_rows_are_picked_with_their_own_numbers():
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.5, 0.5], [-9.0, 9.0, -9.0]])
    sampling = Sampling(temperature=2.0, min_p=0.1)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    rows = [sampling.pick_rows(logits, generators) for _ in range(50)]
    for row, seed in enumerate((3, 4, 5)):
        generator = torch.Generator().manual_seed(seed)
        assert [picked[row] for picked in rows] == [sampling.pick(logits[row], generator) for _ in range(50)]


def test_pick_never_takes_what_is_excluded():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert set(Sampling().pick_rows(logits.expand(400, 5), [torch.Generator().manual_seed(i) for i in range(400)])) == {
        1,
        3,
    }
