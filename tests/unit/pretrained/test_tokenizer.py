"""Whose tokenizer it is, and which ids end a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transom.errors import CheckpointError
from transom.pretrained.tokenizer import SpecialIds, special_ids, tokenizer_of

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a tokenizer that begins every text with an id of its own."""
    words = {"<s>": 0, "hello": 1, "world": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="world"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2, "decoder_start_token_id": null}')
    return tmp_path


def test_prompts_begin_as_the_models_texts_did(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    assert tokenizer.encode("hello world").tolist() == [0, 1, 2]
    assert tokenizer.vocab_size == 3


def test_a_folder_without_a_tokenizer_says_how_to_get_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; no other kind of tokenizer is read") as caught:
        tokenizer_of(folder)
    assert caught.value.folder == folder


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, SpecialIds((2,))),
        ({"eos_token_id": [5, 6]}, SpecialIds((5, 6))),
        ({"eos_token_id": None, "decoder_start_token_id": 0}, SpecialIds((2,), 0)),
        ([], SpecialIds((2,))),
    ],
    ids=str,
)
def test_what_is_said_of_generation_goes_before_the_config(folder: Path, generation: Any, expected: SpecialIds) -> None:
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert special_ids(folder) == expected


def test_a_damaged_file_is_told(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*generation_config\.json"):
        special_ids(folder)
