"""Prompts that cannot be gone on from are refused before anything runs."""

from __future__ import annotations

import pytest
import torch
from transom.errors import InputError
from transom.inference.beam_search import beam_search
from transom.inference.generate import generate, generate_steps, stream
from transom.inference.settings import BeamSettings, GenerationSettings

PROMPT = [72, 101, 108]


def of(function):
    """Call a function of generation with prompts and a number of tokens."""
    if function is beam_search:
        return lambda model, prompts, count=None: beam_search(model, prompts, BeamSettings(max_new_tokens=count))
    return lambda model, prompts, count=None: function(model, prompts, GenerationSettings(max_new_tokens=count))


@pytest.fixture(params=[generate, generate_steps, beam_search])
def call(request):
    return of(request.param)


def test_an_empty_prompt_is_refused(model, call):
    with pytest.raises(InputError, match="the prompt is empty"):
        call(model, [[]])
    with pytest.raises(InputError, match="prompt 1 is empty"):
        call(model, [PROMPT, []])
    with pytest.raises(InputError, match="there are no prompts"):
        call(model, [])


def test_one_row_of_ids_is_no_batch(model, call):
    for prompts in (PROMPT, torch.tensor(PROMPT)):
        with pytest.raises(InputError, match="prompts are one row of ids") as caught:
            call(model, prompts)
        assert caught.value.hint == "[ids], a list of one prompt"


@pytest.mark.parametrize("token", [-1, 256])
def test_ids_that_the_model_does_not_have_are_refused(model, call, token):
    with pytest.raises(InputError, match=f"the prompt holds the id {token}; the model's are 0 to 255"):
        call(model, [[1, token]])
    with pytest.raises(InputError, match=f"prompt 2 holds the id {token}"):
        call(model, [[1], [2], [1, token]])


@pytest.mark.parametrize(
    ("length", "count", "text", "hint"),
    [
        (5, 20, "5 tokens and 20 more are asked for; the model's sequences have at most 24", "at most 19 new tokens"),
        (24, None, "24 tokens and some more are asked for", "a shorter prompt"),
        (30, 1, "30 tokens and 1 more are asked for", "a shorter prompt"),
    ],
)
def test_a_sequence_that_would_be_too_long_is_refused_at_once(model, call, length, count, text, hint):
    with pytest.raises(InputError, match=f"prompt 1 has {text}") as caught:
        call(model, [PROMPT, [1] * length], count)
    assert caught.value.hint.endswith(hint)
    assert caught.value.room == 24 - length


def test_stream_checks_its_prompt_at_once(model):
    with pytest.raises(InputError, match="the prompt is empty"):
        stream(model, [])


def test_a_start_is_for_encoder_decoders_alone(model):
    with pytest.raises(InputError, match="start_id is 0, and the model goes on from the prompt itself") as caught:
        generate(model, [PROMPT], GenerationSettings(start_id=0))
    assert (caught.value.name, caught.value.value) == ("start_id", 0)


@pytest.mark.parametrize("settings", [BeamSettings(), {"max_new_tokens": 3}], ids=["beams", "dict"])
@pytest.mark.parametrize("call", [generate, generate_steps], ids=["generate", "generate_steps"])
def test_generation_refuses_settings_of_another_class(model, call, settings):
    with pytest.raises(InputError) as caught:
        call(model, [[1]], settings)
    error = caught.value
    assert error.what == f"settings are a {type(settings).__name__}; a GenerationSettings is needed."
    assert (error.asked_by, error.name, error.value) == (call.__name__, "settings", settings)
    assert error.hint == "GenerationSettings(max_new_tokens=...), from transom.inference"


def test_beam_search_refuses_settings_of_another_class(model):
    with pytest.raises(InputError) as caught:
        beam_search(model, [[1]], GenerationSettings())
    assert caught.value.what == "settings are a GenerationSettings; a BeamSettings is needed."
    assert (caught.value.asked_by, caught.value.name) == ("beam_search", "settings")
