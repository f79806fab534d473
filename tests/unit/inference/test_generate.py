"""Generation: rows that do not know of each other, in steps or all at once, with caches or without."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import transom
from torch import nn
from transom.errors import CacheError, InputError
from transom.inference.generate import Generated, generate, generate_steps, stream
from transom.inference.settings import GenerationSettings

PROMPT = [72, 101, 108, 108, 111]
UNEQUAL = [[7], PROMPT, [1, 2, 3]]
GREEDY = GenerationSettings(greedy=True, max_new_tokens=6)


class Counter(nn.Module):
    """Always prefers the last token plus one; knows nothing of caches or plans."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.modes = []
        self.lengths = []

    def forward(self, tokens, *, input_pos=None):
        assert input_pos is None
        self.modes.append((self.training, torch.is_grad_enabled()))
        self.lengths.append(tokens.shape[1])
        return nn.functional.one_hot((tokens + 1) % 10, 10).float() * 50


def most(count, **settings):
    return GenerationSettings(max_new_tokens=count, **settings)


def test_stream_goes_on_from_each_token_it_makes():
    assert list(stream(Counter(), [5], most(7))) == [6, 7, 8, 9, 0, 1, 2]


def test_stream_makes_a_token_when_it_is_asked_for():
    model = Counter()
    tokens = stream(model, [5])
    assert model.lengths == []
    assert list(itertools.islice(tokens, 3)) == [6, 7, 8]
    assert model.lengths == [1, 2, 3]


def test_stream_of_no_tokens_runs_nothing():
    model = Counter()
    assert list(stream(model, [5], most(0))) == []
    assert model.lengths == []


def test_stream_runs_without_dropout_or_gradients_and_puts_the_mode_back():
    model = Counter().train()
    tokens = stream(model, torch.tensor([5]), most(2))
    next(tokens)
    assert torch.is_grad_enabled()
    assert len(list(tokens)) == 1
    assert model.modes == [(False, False)] * 2
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_stream_puts_back_the_modes_of_parts_that_differ(model, training):
    model.train(training)
    model.layers[0].train(not training)
    parts = list(model.modules())  # without the caches, which come and go
    before = [part.training for part in parts]
    tokens = stream(model, PROMPT)
    next(tokens)
    assert not any(part.training for part in parts)
    tokens.close()
    assert [part.training for part in parts] == before


def test_stream_puts_the_mode_back_when_it_is_abandoned(model):
    model.train()
    tokens = stream(model, PROMPT)
    next(tokens)
    assert model.caches_are_enabled()
    tokens.close()
    assert model.training
    assert not model.caches_are_enabled()


SETTINGS = {
    "greedy": most(18, greedy=True),
    "plain": most(18),
    "all": most(18, top_k=50, top_p=0.9, min_p=0.01, temperature=0.7, repetition_penalty=1.2),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_cache_and_whole_sequences_give_the_same_tokens(model, settings):
    cached = generate(model, UNEQUAL, settings, seed=1)
    assert [len(row.tokens) for row in cached] == [18] * 3
    assert generate(model, UNEQUAL, replace(settings, use_cache=False), seed=1) == cached


@pytest.mark.parametrize("kind", ["static", "sliding_window", "paged"])
@pytest.mark.parametrize(
    "config",
    [
        {"window_size": [3, 0]},
        {"window_size": [4, 0], "window_attn_skip_freq": 2, "position_embedding_type": "alibi"},
        {"window_size": [2, 0], "position_embedding_type": "learned_absolute", "num_query_groups": 4},
    ],
    ids=["rope", "alibi, every second layer", "learned, without groups"],
)
def test_every_cache_gives_the_tokens_of_whole_sequences(spec, kind, config):
    model = transom.build(spec | {"config": spec["config"] | config}, use={"kv_cache": kind}, mode="infer", seed=0)
    expected = generate(model, UNEQUAL, most(15, use_cache=False), seed=3)
    assert generate(model, UNEQUAL, most(15), seed=3) == expected


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_row_is_what_it_would_be_alone(model, settings):
    together = generate(model, UNEQUAL, settings, seed=[5, 6, 7])
    alone = [generate(model, [prompt], settings, seed=seed)[0] for prompt, seed in zip(UNEQUAL, (5, 6, 7), strict=True)]
    assert together == alone
    assert generate(model, UNEQUAL[::-1], settings, seed=[7, 6, 5]) == alone[::-1]


def test_a_row_is_what_it_streams(model):
    settings = most(9, temperature=2.0)
    assert generate(model, [PROMPT], settings, seed=3)[0].tokens == list(stream(model, PROMPT, settings, seed=3))


def test_greedy_tokens_are_those_of_the_full_forward(model):
    tokens = list(PROMPT)
    for token in stream(model, PROMPT, most(10, greedy=True)):
        assert token == int(model_of(model)(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)


def model_of(model):
    """Give the same model without the caches that a running generation has taken."""
    other = transom.build(model.plan)
    other.load_state_dict(model.state_dict())
    return other


def test_rows_end_by_themselves():
    eos = generate(Counter(), [[5], [0], [8]], most(4, eos_ids=8))
    assert eos == [
        Generated([6, 7, 8], "eos", eos[0].seed),
        Generated([1, 2, 3, 4], "length", eos[1].seed),
        Generated([9, 0, 1, 2], "length", eos[2].seed),
    ]
    stopped = generate(Counter(), [[5], [1]], most(9, stop=[[2, 3], [9, 9], [0]]))
    assert [(row.tokens, row.ending) for row in stopped] == [([6, 7, 8, 9, 0], "stop"), ([2, 3], "stop")]


def test_a_stop_sequence_does_not_begin_in_the_prompt():
    assert generate(Counter(), [[5]], most(12, stop=[[5, 6]]))[0].tokens == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6]


def test_a_row_that_has_ended_does_not_change_the_others(model):
    free = generate(model, UNEQUAL, GREEDY)
    eos = free[1].tokens[1]
    ended = generate(model, UNEQUAL, replace(GREEDY, eos_ids=(eos,)))
    for before, after in zip(free, ended, strict=True):
        assert after.tokens == before.tokens[: len(after.tokens)]
        assert after.ending == ("eos" if after.tokens[-1] == eos else "length")
    assert len(ended[1].tokens) < 6


def test_steps_tell_the_new_token_of_each_row():
    steps = list(generate_steps(Counter(), [[5], [0]], most(4, eos_ids=7)))
    assert steps == [[6, 1], [7, 2], [None, 3], [None, 4]]
    seen = []
    generate(Counter(), [[5], [0]], most(4, eos_ids=7), on_step=seen.append)
    assert seen == steps


def test_the_caller_may_end_a_row():
    calls = []

    def is_done(row, tokens):
        calls.append((row, list(tokens)))
        return row == 0 and len(tokens) == 2

    rows = generate(Counter(), [[5], [0]], most(3), is_done=is_done)
    assert [(row.tokens, row.ending) for row in rows] == [([6, 7], "stop"), ([1, 2, 3], "length")]
    assert calls[:3] == [(0, [6]), (1, [1]), (0, [6, 7])]


def test_the_penalty_counts_the_prompt_and_what_came_after():
    class Flat(Counter):
        def forward(self, tokens, *, input_pos=None):
            return torch.tensor([3.0, 2.9, 2.8, 2.7]).expand(*tokens.shape, 4)

    made = generate(Flat(), [[0], [2, 1]], most(3, greedy=True, repetition_penalty=2.0))
    assert [row.tokens for row in made] == [[1, 2, 3], [0, 3, 0]]


def test_tokens_depend_on_the_seed(model):
    def made(seed=None):
        return generate(model, [PROMPT], most(12, temperature=3.0), seed=seed)[0]

    assert made(1) == made(1)
    assert made(1).tokens != made(2).tokens
    assert made().tokens != made().tokens
    again = made()
    assert made(again.seed) == again


def test_one_seed_counts_up_over_the_rows(model):
    rows = generate(model, [PROMPT] * 3, most(6, temperature=3.0), seed=4)
    assert [row.seed for row in rows] == [4, 5, 6]
    assert rows == generate(model, [PROMPT] * 3, most(6, temperature=3.0), seed=[4, 5, 6])


def test_a_seed_leaves_the_global_generator_alone(model):
    state = torch.get_rng_state()
    generate(model, [PROMPT], most(3), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_fill_the_models_sequence_when_no_number_is_given(model):
    rows = generate(model, UNEQUAL, GenerationSettings(greedy=True))
    assert [len(row.tokens) for row in rows] == [24 - 1, 24 - 5, 24 - 3]
    assert {row.ending for row in rows} == {"length"}


def test_caches_that_the_caller_made_stay(model):
    model.setup_caches(2, torch.float32)
    model(torch.tensor([[1, 2], [3, 4]]), input_pos=torch.tensor([0, 1]))
    first = generate(model, [PROMPT], GREEDY)
    assert model.caches_are_enabled()
    assert [row.tokens for row in generate(model, [PROMPT], GREEDY)] == [first[0].tokens]
    with pytest.raises(CacheError, match="3 rows are asked for and the cache holds 2"):
        generate(model, UNEQUAL, GREEDY)
    assert not model.cache.lengths.any()
    model.delete_caches()
    assert [row.tokens for row in generate(model, [PROMPT], GREEDY)] == [first[0].tokens]


def test_a_prompt_gives_the_logits_of_its_last_token_alone(model):
    shapes = []
    handle = model.register_forward_hook(lambda m, given, logits: shapes.append(list(logits.shape)))
    generate(model, UNEQUAL, most(3))
    handle.remove()
    assert shapes == [[3, 1, 256]] * 3


def test_caches_are_no_longer_than_needed(model):
    sizes = []
    handle = model.register_forward_pre_hook(lambda m, _: sizes.append((m.cache.batch_size, m.cache.capacity)))
    generate(model, UNEQUAL, GREEDY)
    handle.remove()
    assert set(sizes) == {(3, 5 + 6 - 1)}


def test_a_model_built_to_train_says_how_to_build_it(spec):
    model = transom.build(spec, seed=0)
    with pytest.raises(CacheError, match="not built for caches") as caught:
        next(stream(model, PROMPT))
    assert 'mode="infer"' in caught.value.hint
    assert len(generate(model, UNEQUAL, most(2, use_cache=False))) == 3


@pytest.mark.parametrize(
    ("seeds", "text"), [([1, 2], "2 seeds are given for 3 prompts"), ([], "0 seeds are given for 3 prompts")]
)
def test_another_number_of_seeds_than_prompts_is_refused(model, seeds, text):
    with pytest.raises(InputError, match=text) as caught:
        generate(model, UNEQUAL, seed=seeds)
    assert caught.value.value == seeds


def test_a_model_of_unknown_length_needs_a_number():
    with pytest.raises(InputError, match="does not say how long its sequences may be") as caught:
        generate(Counter(), [[5]])
    assert (caught.value.name, caught.value.value) == ("max_new_tokens", None)
