"""Generation against that of Hugging Face transformers: greedy tokens, beams, and every filter of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom.inference.beam_search import beam_search
from transom.inference.generate import generate
from transom.inference.sampling import Sampling
from transom.inference.settings import BeamSettings, GenerationSettings

transformers = pytest.importorskip("transformers")

VOCAB, NEW_TOKENS, PADDING = 40, 12, 1
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "gemma 2": ("Gemma2", SIZES | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gpt 2": (
        "GPT2",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.5},
    ),
}
UNEQUAL = [[5, 6, 7, 8, 9], [11], [3, 4, 30]]
NONE = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": PADDING}


class Saved:
    """A model of transformers, and the same one of ours."""

    def __init__(self, name: str, folder: Any) -> None:
        kind, config = MODELS[name]
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}Config")(**config, **NONE)
        kinds = {"GPT2": "GPT2LMHeadModel"}
        self.theirs = getattr(transformers, kinds.get(kind, f"{kind}ForCausalLM"))(made).eval()
        self.theirs.save_pretrained(folder)
        self.folder = folder
        self.loaded: dict[str, nn.Module] = {}

    def ours(self, cache: str = "static") -> nn.Module:
        if cache not in self.loaded:
            self.loaded[cache] = transom.from_pretrained(self.folder, use={"kv_cache": cache})
        return self.loaded[cache]

    def told(self, prompts: list[list[int]], **settings: Any) -> Any:
        """What transformers gives for prompts padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[PADDING] * (longest - len(row)) + row for row in prompts])
        keep = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
        told = self.theirs.generate(
            ids,
            attention_mask=keep,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
            pad_token_id=PADDING,
            **settings,
        )
        told.sequences = told.sequences[:, longest:]
        return told


@pytest.fixture(scope="module", params=MODELS)
def saved(request: Any, tmp_path_factory: Any) -> Saved:
    return Saved(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> Saved:
    return Saved("llama", tmp_path_factory.mktemp("llama"))


def test_greedy_tokens_are_theirs(saved: Saved) -> None:
    for cache in ("static", "sliding_window" if hasattr(saved.theirs.config, "sliding_window") else "paged", None):
        compare_greedy(saved, cache)


def compare_greedy(saved: Saved, cache: str | None) -> None:
    expected = saved.told(UNEQUAL).sequences.tolist()
    settings = GenerationSettings(greedy=True, max_new_tokens=NEW_TOKENS, use_cache=cache is not None)
    assert [row.tokens for row in generate(saved.ours(cache or "static"), UNEQUAL, settings)] == expected


def test_greedy_tokens_are_theirs_with_a_penalty_and_an_end(llama: Saved) -> None:
    prompts = [[5, 6, 7], [11, 12, 13], [3, 4, 30]]  # of one length: theirs counts padding as seen
    expected = llama.told(prompts, repetition_penalty=1.7, eos_token_id=[7, 30]).sequences.tolist()
    settings = GenerationSettings(greedy=True, max_new_tokens=NEW_TOKENS, repetition_penalty=1.7, eos_ids=(7, 30))
    rows = generate(llama.ours(), prompts, settings)
    assert [without_padding(row, len(made.tokens)) for row, made in zip(expected, rows, strict=True)] == [
        made.tokens for made in rows
    ]


def without_padding(tokens: list[int], length: int) -> list[int]:
    """Cut what is nothing but padding behind a length."""
    assert set(tokens[length:]) <= {PADDING}
    return tokens[:length]


BEAMS: dict[str, dict[str, Any]] = {
    "two": {"num_beams": 2},
    "ends": {"num_beams": 4, "eos": [7, 9], "num_return_sequences": 4},
    "early": {"num_beams": 3, "eos": [7, 9, 12], "early_stopping": True, "num_return_sequences": 2},
    "never": {"num_beams": 3, "eos": [7], "early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
    "short": {"num_beams": 3, "eos": [7, 30], "length_penalty": -1.0, "num_return_sequences": 3},
    "log probabilities": {"num_beams": 5, "eos": [9], "length_penalty": 0.0, "num_return_sequences": 5},
}


@pytest.mark.parametrize("name", BEAMS)
def test_beams_are_theirs(llama: Saved, name: str) -> None:
    compare_beams(llama, UNEQUAL, "static", **BEAMS[name])


@pytest.mark.parametrize("cache", ["paged", None])
def test_beams_are_theirs_in_every_cache(llama: Saved, cache: str | None) -> None:
    compare_beams(llama, UNEQUAL, cache, **BEAMS["never"])


def test_beams_are_theirs_in_rings(tmp_path: Any) -> None:
    compare_beams(Saved("gemma 2", tmp_path), UNEQUAL, "sliding_window", **BEAMS["ends"])


def test_beams_are_theirs_with_a_penalty(llama: Saved) -> None:
    prompts = [[5, 6, 7], [11, 12, 13]]  # of one length: theirs counts padding as seen
    compare_beams(llama, prompts, "static", num_beams=3, eos=[7], num_return_sequences=3, repetition_penalty=1.5)


def compare_beams(saved: Saved, prompts: list[list[int]], cache: str | None, eos: Any = (), **settings: Any) -> None:
    told = saved.told(prompts, eos_token_id=list(eos) or None, **settings)
    asked = BeamSettings(max_new_tokens=NEW_TOKENS, eos_ids=tuple(eos), use_cache=cache is not None, **settings)
    found = [beam for beams in beam_search(saved.ours(cache or "static"), prompts, asked) for beam in beams]
    expected = told.sequences.tolist()
    assert [beam.tokens for beam in found] == [
        without_padding(row, len(beam.tokens)) for row, beam in zip(expected, found, strict=True)
    ]
    torch.testing.assert_close(
        torch.tensor([beam.score for beam in found]), told.sequences_scores, rtol=1e-4, atol=1e-4
    )


FILTERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "temperature": ({"temperature": 0.7}, "TemperatureLogitsWarper", {"temperature": 0.7}),
    "top k": ({"top_k": 5}, "TopKLogitsWarper", {"top_k": 5}),
    "top k beyond the vocabulary": ({"top_k": 500}, "TopKLogitsWarper", {"top_k": 500}),
    "top p": ({"top_p": 0.6}, "TopPLogitsWarper", {"top_p": 0.6}),
    "top p of almost nothing": ({"top_p": 1e-6}, "TopPLogitsWarper", {"top_p": 1e-6}),
    "min p": ({"min_p": 0.2}, "MinPLogitsWarper", {"min_p": 0.2}),
    "penalty": ({"repetition_penalty": 1.8}, "RepetitionPenaltyLogitsProcessor", {"penalty": 1.8}),
    "reward": ({"repetition_penalty": 0.6}, "RepetitionPenaltyLogitsProcessor", {"penalty": 0.6}),
}


def logits_and_seen() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of six rows, ids that each has seen, and the same as a mask."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, VOCAB, generator=random)
    ids = torch.randint(VOCAB, (6, 9), generator=random)
    return logits, ids, torch.zeros(6, VOCAB, dtype=torch.bool).scatter(1, ids, True)


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_leaves_what_theirs_leaves(name: str) -> None:
    ours, kind, arguments = FILTERS[name]
    logits, ids, seen = logits_and_seen()
    expected = getattr(transformers, kind)(**arguments)(ids, logits)
    torch.testing.assert_close(Sampling(**ours).filtered(logits, seen), expected)


def test_filters_together_leave_what_theirs_leave(llama: Saved) -> None:
    logits, ids, seen = logits_and_seen()
    settings = {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.4}
    asked = transformers.GenerationConfig(do_sample=True, **settings)
    processors = llama.theirs._get_logits_processor(asked, input_ids_seq_length=ids.shape[1])
    torch.testing.assert_close(Sampling(**settings).filtered(logits, seen), processors(ids, logits))


READ = [[5, 6, 7, 8, 9, 2], [11, 2], [3, 4, 30, 2]]
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "initializer_factor": 4.0}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: Any) -> Any:
    """A T5 of transformers, and the same one of ours."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCAB, decoder_start_token_id=0, pad_token_id=PADDING, eos_token_id=2, **T5
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    return theirs, transom.from_pretrained(folder)


def told_by_t5(model: Any, **settings: Any) -> Any:
    longest = max(map(len, READ))
    ids = torch.tensor([row + [PADDING] * (longest - len(row)) for row in READ])
    keep = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in READ])
    told = model.generate(
        ids,
        attention_mask=keep,
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=False,
        **settings,
    )
    told.sequences = told.sequences[:, 1:]
    return told


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_t5_writes_is_theirs(t5: Any, use_cache: bool) -> None:
    theirs, ours = t5
    for penalty in (1.0, 1.5):
        settings = GenerationSettings(
            greedy=True,
            max_new_tokens=NEW_TOKENS,
            start_id=0,
            eos_ids=(2,),
            repetition_penalty=penalty,
            use_cache=use_cache,
        )
        expected = told_by_t5(theirs, repetition_penalty=penalty).sequences.tolist()
        for row, made in zip(expected, generate(ours, READ, settings), strict=True):
            assert without_padding(row, len(made.tokens)) == made.tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_of_t5_are_theirs(t5: Any, use_cache: bool) -> None:
    theirs, ours = t5
    settings = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 1.5, "repetition_penalty": 1.5}
    told = told_by_t5(theirs, **settings)
    asked = BeamSettings(max_new_tokens=NEW_TOKENS, start_id=0, eos_ids=(2,), use_cache=use_cache, **settings)
    found = [beam for beams in beam_search(ours, READ, asked) for beam in beams]
    for row, beam in zip(told.sequences.tolist(), found, strict=True):
        assert without_padding(row, len(beam.tokens)) == beam.tokens
    scores = torch.tensor([beam.score for beam in found])
    torch.testing.assert_close(scores, told.sequences_scores, rtol=1e-4, atol=1e-4)
