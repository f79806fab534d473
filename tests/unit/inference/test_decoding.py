"""How a model is asked for the next tokens: encoder-decoders, and what they are checked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transom
from transom.errors import InputError
from transom.inference.beam_search import beam_search
from transom.inference.decoding import CachingModel, is_encoder_decoder, longest_sequence
from transom.inference.generate import generate, stream
from transom.inference.settings import BeamSettings, GenerationSettings

READ = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
SETTINGS = GenerationSettings(max_new_tokens=7, start_id=0, temperature=2.0)


@pytest.fixture(scope="module")
def t5():
    """Give an encoder-decoder with relative positions."""
    config = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "position_embedding_type": "relative",
        "init_method_std": 0.5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    spec = {"model": "t5", "vocab_size": 40, "max_sequence_length": 12, "config": config, "masks": ["padding"]}
    return transom.build(spec, mode="infer", seed=0)


def test_models_tell_what_they_are(model, t5):
    assert not is_encoder_decoder(model)
    assert is_encoder_decoder(t5)
    assert isinstance(model, CachingModel)
    assert isinstance(t5, CachingModel)
    assert not isinstance(torch.nn.Linear(1, 1), CachingModel)
    assert (longest_sequence(model), longest_sequence(t5), longest_sequence(torch.nn.Linear(1, 1))) == (24, 12, None)


def test_what_is_written_is_the_most_probable_after_what_was_read(t5):
    settings = replace(SETTINGS, greedy=True)
    for prompt, row in zip(READ, generate(t5, READ, settings), strict=True):
        states = t5.encode(torch.tensor([prompt]))
        written = [0]
        for token in row.tokens:
            assert token == int(t5.decode(torch.tensor([written]), states)[0, -1].argmax())
            written.append(token)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_that_is_written_is_what_it_would_be_alone(t5, use_cache):
    settings = replace(SETTINGS, use_cache=use_cache)
    rows = generate(t5, READ, settings, seed=3)
    assert rows == [generate(t5, [prompt], SETTINGS, seed=3 + i)[0] for i, prompt in enumerate(READ)]
    assert rows[2].tokens == list(stream(t5, READ[2], settings, seed=5))


def test_the_penalty_counts_what_is_written_alone(t5):
    settings = replace(SETTINGS, greedy=True, repetition_penalty=1e6)
    for row in generate(t5, READ, settings):
        assert len(set(row.tokens)) == len(row.tokens)
        assert 0 not in row.tokens, "what it begins with was written too"


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_read_what_their_prompt_is(t5, use_cache):
    settings = BeamSettings(num_beams=3, max_new_tokens=6, start_id=0, eos_ids=range(0, 40, 7), num_return_sequences=3)
    together = beam_search(t5, READ, replace(settings, use_cache=use_cache))
    for prompt, beams in zip(READ, together, strict=True):
        (alone,) = beam_search(t5, [prompt], settings)
        assert [beam.tokens for beam in beams] == [beam.tokens for beam in alone]


def test_what_is_written_fills_the_models_sequence_when_no_number_is_given(t5):
    assert [len(row.tokens) for row in generate(t5, READ, GenerationSettings(start_id=0))] == [11] * 3


def test_encoder_decoders_say_what_they_need(t5):
    with pytest.raises(InputError, match="what it begins with is not said") as caught:
        generate(t5, READ)
    assert (caught.value.name, caught.value.hint) == ("start_id", "start_id=0 for T5")
    with pytest.raises(InputError, match="prompt 1 has 13 tokens; the model reads at most 12") as caught:
        generate(t5, [[1], [1] * 13], SETTINGS)
    assert caught.value.room == -1
    with pytest.raises(InputError, match="1 tokens and 12 more are asked for; the model's sequences have at most 12"):
        generate(t5, READ, replace(SETTINGS, max_new_tokens=12))
