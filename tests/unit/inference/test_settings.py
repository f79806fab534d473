"""Settings of generation: what they are made of, and what they refuse."""

from __future__ import annotations

import math

import pytest
from transom.errors import InputError
from transom.inference.settings import BeamSettings, GenerationSettings


@pytest.mark.parametrize("kind", [GenerationSettings, BeamSettings])
def test_ids_may_be_given_in_any_form(kind):
    assert kind(eos_ids=7).eos_ids == (7,)
    settings = kind(eos_ids=[1, 2], stop=[[3, 4], (5,)])
    assert (settings.eos_ids, settings.stop) == ((1, 2), ((3, 4), (5,)))
    hash(settings)


def test_ending_looks_at_the_last_tokens():
    settings = GenerationSettings(eos_ids=7, stop=[[1, 2], [3]])
    assert settings.ending([1, 7]) == "eos"
    assert settings.ending([0, 1, 2]) == settings.ending([3]) == "stop"
    assert settings.ending([7, 2]) is settings.ending([2]) is None


def test_settings_give_their_sampling():
    settings = GenerationSettings(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5, greedy=True)
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "greedy"):
        assert getattr(settings.sampling, name) == getattr(settings, name)


BOTH = [
    ({"max_new_tokens": -1}, "-1 new tokens are asked for; it must be 0 or more", "max_new_tokens"),
    ({"stop": [[1], []]}, "a stop sequence is empty", "stop"),
    ({"compile": True, "use_cache": False}, "compile needs caches", "compile"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0, and finite", "repetition_penalty"),
]
OF_GENERATION = [
    ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more, and finite", "temperature"),
    ({"top_k": 0}, "top_k is 0; it must be 1 or more", "top_k"),
    ({"top_p": 2}, "top_p is 2; it must be above 0, up to 1", "top_p"),
    ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 to 1", "min_p"),
]
OF_BEAMS = [
    ({"num_beams": 0}, "num_beams is 0; it must be 1 or more", "num_beams"),
    ({"early_stopping": "maybe"}, "early_stopping is 'maybe'; it must be True, False or 'never'", "early_stopping"),
    ({"num_return_sequences": 5}, "num_return_sequences is 5; it must be 1 to num_beams, 4", "num_return_sequences"),
    ({"length_penalty": math.inf}, "length_penalty is inf; it must be finite", "length_penalty"),
]


@pytest.mark.parametrize(
    ("kind", "given", "text", "name"),
    [
        *((kind, *case) for kind in (GenerationSettings, BeamSettings) for case in BOTH),
        *((GenerationSettings, *case) for case in OF_GENERATION),
        *((BeamSettings, *case) for case in OF_BEAMS),
    ],
)
def test_settings_refuse_what_cannot_be(kind, given, text, name):
    with pytest.raises(InputError, match=text) as caught:
        kind(**given)
    assert caught.value.name == name
