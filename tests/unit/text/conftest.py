"""A byte-level BPE tokenizer of Hugging Face's, trained on one sentence."""

from __future__ import annotations

import pytest
import tokenizers


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """Give the path of a tokenizer.json whose tokens may be parts of a character."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["hello world, hello there"], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path
