"""Beam search, against a search through everything, and what it does at its limits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import transom
from torch import nn
from transom.errors import CacheError, InputError
from transom.inference.beam_search import beam_search
from transom.inference.generate import generate
from transom.inference.settings import BeamSettings, GenerationSettings

PROMPT = [72, 101, 108, 108, 111]
VOCAB = 4


class Markov(nn.Module):
    """The next token depends on the last one alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(5)))

    def forward(self, tokens):
        return self.weight[tokens]


def log_probability(prompt, tokens):
    table = Markov().weight.detach().double().log_softmax(-1)
    pairs = itertools.pairwise([prompt[-1], *tokens])
    return sum(float(table[a, b]) for a, b in pairs)


def everything(prompt, length, ends=()):
    """Every continuation up to a length, where one goes on until it ends."""
    for n in range(1, length + 1):
        for tokens in itertools.product(range(VOCAB), repeat=n):
            is_ended = tokens[-1] in ends
            if (is_ended or n == length) and not set(tokens[:-1]) & set(ends):
                yield list(tokens)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all(penalty):
    prompt, length, ends = [1], 4, (2,)
    scores = {
        tuple(tokens): log_probability(prompt, tokens) / len(tokens) ** penalty
        for tokens in everything(prompt, length, ends)
    }
    settings = BeamSettings(
        num_beams=64,
        max_new_tokens=length,
        eos_ids=ends,
        length_penalty=penalty,
        early_stopping="never",
        num_return_sequences=5,
    )
    (found,) = beam_search(Markov(), [prompt], settings)
    assert [beam.score for beam in found] == pytest.approx(sorted(scores.values(), reverse=True)[:5], abs=1e-5)
    assert [beam.score for beam in found] == pytest.approx([scores[tuple(beam.tokens)] for beam in found], abs=1e-5)
    assert len({tuple(beam.tokens) for beam in found}) == 5


def test_one_beam_is_greedy(model):
    settings = BeamSettings(num_beams=1, max_new_tokens=8)
    beams = beam_search(model, [[7], PROMPT], settings)
    greedy = generate(model, [[7], PROMPT], GenerationSettings(greedy=True, max_new_tokens=8))
    assert [beam.tokens for (beam,) in beams] == [row.tokens for row in greedy]


@pytest.mark.parametrize("kind", ["static", "sliding_window", "paged"])
def test_prompts_do_not_know_of_each_other_in_any_cache(spec, kind):
    config = spec["config"] | {"window_size": [3, 0], "window_attn_skip_freq": 2}
    model = transom.build(spec | {"config": config}, use={"kv_cache": kind}, mode="infer", seed=0)
    settings = BeamSettings(num_beams=3, max_new_tokens=10, eos_ids=range(0, 256, 9), num_return_sequences=3)
    prompts = [[7], PROMPT, [1, 2, 3]]
    together = beam_search(model, prompts, settings)
    for use_cache, each in itertools.product((True, False), range(3)):
        (alone,) = beam_search(model, [prompts[each]], replace(settings, use_cache=use_cache))
        assert [beam.tokens for beam in together[each]] == [beam.tokens for beam in alone]
        assert [beam.score for beam in together[each]] == pytest.approx([beam.score for beam in alone], abs=1e-4)


def test_beams_end_with_stop_sequences():
    settings = BeamSettings(num_beams=2, max_new_tokens=6, stop=[[3, 0]], num_return_sequences=2)
    for beam in beam_search(Markov(), [[1]], settings)[0]:
        at = [i for i in range(len(beam.tokens) - 1) if beam.tokens[i : i + 2] == [3, 0]]
        assert at in ([], [len(beam.tokens) - 2])


def test_no_tokens_are_searched_for_nothing(model):
    (beams,) = beam_search(model, [PROMPT], BeamSettings(num_beams=2, max_new_tokens=0, num_return_sequences=2))
    assert [(beam.tokens, beam.score) for beam in beams] == [([], 0.0)] * 2


def test_rows_fill_the_models_sequence_when_no_number_is_given(model):
    rows = beam_search(model, [[7], PROMPT], BeamSettings(num_beams=2))
    assert [len(beams[0].tokens) for beams in rows] == [24 - 1, 24 - 5]


def test_a_small_vocabulary_serves_many_beams():
    (beams,) = beam_search(Markov(), [[0]], BeamSettings(num_beams=9, max_new_tokens=2, num_return_sequences=9))
    assert len({tuple(beam.tokens) for beam in beams}) == 9


def test_a_model_of_unknown_length_needs_a_number():
    with pytest.raises(InputError, match="does not say how long its sequences may be") as caught:
        beam_search(Markov(), [[1]])
    assert caught.value.name == "max_new_tokens"


def test_caches_of_the_caller_must_hold_every_beam(model):
    model.setup_caches(3)
    with pytest.raises(CacheError, match="4 rows are asked for and the cache holds 3"):
        beam_search(model, [[7], PROMPT], BeamSettings(num_beams=2, max_new_tokens=3))
