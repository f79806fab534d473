from __future__ import annotations

import itertools

import pytest
import torch
import transom
from torch import nn
from transom.errors import CacheError, InputError
from transom.inference.generate import CachingModel, generate

PROMPT = [72, 101, 108, 108, 111]


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


def test_generate_goes_on_from_each_token_it_makes():
    assert list(generate(Counter(), [5], max_new_tokens=7)) == [6, 7, 8, 9, 0, 1, 2]


def test_generate_makes_a_token_when_it_is_asked_for():
    model = Counter()
    tokens = generate(model, [5])
    assert model.lengths == []
    assert list(itertools.islice(tokens, 3)) == [6, 7, 8]
    assert model.lengths == [1, 2, 3]


def test_generate_of_no_tokens_runs_nothing():
    model = Counter()
    assert list(generate(model, [5], max_new_tokens=0)) == []
    assert model.lengths == []


def test_generate_runs_without_dropout_or_gradients_and_puts_the_mode_back():
    model = Counter().train()
    tokens = generate(model, torch.tensor([5]), max_new_tokens=2)
    next(tokens)
    assert torch.is_grad_enabled()
    assert len(list(tokens)) == 1
    assert model.modes == [(False, False)] * 2
    assert model.training


def test_generate_puts_the_mode_back_when_it_is_abandoned(model):
    model.train()
    tokens = generate(model, PROMPT)
    next(tokens)
    assert model.caches_are_enabled()
    tokens.close()
    assert model.training
    assert not model.caches_are_enabled()


@pytest.mark.parametrize(
    "settings", [{"greedy": True}, {"seed": 1}, {"seed": 1, "top_k": 9, "top_p": 0.9, "temperature": 0.7}]
)
@pytest.mark.parametrize("prompt", [[7], PROMPT], ids=["one token", "five tokens"])
def test_cache_and_whole_sequence_give_the_same_tokens(model, prompt, settings):
    cached = list(generate(model, prompt, max_new_tokens=19, **settings))
    assert len(cached) == 19
    assert list(generate(model, prompt, max_new_tokens=19, use_cache=False, **settings)) == cached


def test_greedy_tokens_are_those_of_the_full_forward(model):
    tokens = list(PROMPT)
    for token in list(generate(model, PROMPT, max_new_tokens=10, greedy=True)):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)


def test_tokens_depend_on_the_seed(model):
    def made(**settings):
        return list(generate(model, PROMPT, max_new_tokens=12, temperature=3.0, **settings))

    assert made(seed=1) == made(seed=1)
    assert made(seed=1) != made(seed=2)
    assert made() != made()


def test_a_seed_leaves_the_global_generator_alone(model):
    state = torch.get_rng_state()
    list(generate(model, PROMPT, max_new_tokens=3, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_generate_fills_the_models_sequence_when_no_number_is_given(model):
    assert len(list(generate(model, PROMPT, greedy=True))) == 24 - 5


def test_caches_that_the_caller_made_stay(model):
    model.setup_caches(2, torch.float32)
    model(torch.tensor([[1, 2], [3, 4]]), input_pos=torch.tensor([0, 1]))
    first = list(generate(model, PROMPT, max_new_tokens=4, greedy=True))
    assert model.caches_are_enabled()
    assert list(generate(model, PROMPT, max_new_tokens=4, greedy=True)) == first
    model.delete_caches()
    assert list(generate(model, PROMPT, max_new_tokens=4, greedy=True)) == first


def test_the_decoder_is_a_caching_model(model):
    assert isinstance(model, CachingModel)
    assert not isinstance(Counter(), CachingModel)


def test_a_model_built_to_train_says_how_to_build_it(spec):
    model = transom.build(spec, seed=0)
    with pytest.raises(CacheError, match="not built for caches") as caught:
        next(generate(model, PROMPT))
    assert 'mode="infer"' in caught.value.hint
    assert len(list(generate(model, PROMPT, max_new_tokens=2, use_cache=False))) == 2


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(InputError, match="the prompt is empty"):
        generate(model, [])


def test_a_negative_number_of_tokens_is_refused(model):
    with pytest.raises(InputError, match="-1 new tokens are asked for; it must be 0 or more"):
        generate(model, PROMPT, max_new_tokens=-1)


@pytest.mark.parametrize("token", [-1, 256])
def test_a_prompt_with_ids_that_the_model_does_not_have_is_refused(model, token):
    with pytest.raises(InputError, match=f"the prompt holds the id {token}; the model's are 0 to 255"):
        generate(model, [1, token])


@pytest.mark.parametrize(
    ("length", "count", "text", "hint"),
    [
        (5, 20, "5 tokens and 20 more are asked for; the model's sequences have at most 24", "at most 19 new tokens"),
        (24, None, "24 tokens and some more are asked for", "a shorter prompt"),
        (30, 1, "30 tokens and 1 more are asked for", "a shorter prompt"),
    ],
)
def test_a_sequence_that_would_be_too_long_is_refused_at_once(model, length, count, text, hint):
    with pytest.raises(InputError, match=text) as caught:
        generate(model, [1] * length, max_new_tokens=count)
    assert caught.value.hint.endswith(hint)
    assert caught.value.room == 24 - length


def test_settings_are_checked_at_once(model):
    with pytest.raises(InputError, match="top_p is 2"):
        generate(model, PROMPT, top_p=2)
