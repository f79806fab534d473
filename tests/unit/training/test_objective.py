"""What is learned: the next token, or what was cut out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transom
from torch import nn
from torch.nn import functional as F
from transom.errors import DataError, SpecError
from transom.pretrained.tokenizer import special_ids
from transom.training.objective import FillSpans, NextToken, check_objective, objective_of
from transom.training.run import train


def write_text(path: Path) -> Path:
    path.write_text("the quick brown fox jumps over the lazy dog, and back again. " * 20)
    return path


def t5_spec(data: Any, **train_fields: Any) -> dict[str, Any]:
    settings = {"objective": "span_corruption", "steps": 30, "batch_size": 8, "warmup_steps": 2, "learning_rate": 0.01}
    looks = {"log_every": 1, "eval_every": 0, "eval_batches": 2, "checkpoint_every": 0, "validation_fraction": 0.2}
    return {
        "name": "t5",
        "model": "t5",
        "vocab_size": 140,
        "max_sequence_length": 24,
        "config": {
            "num_layers": 1,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "normalization": "RMSNorm",
            "position_embedding_type": "relative",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "train": settings | looks | {"data": str(data)} | train_fields,
    }


def test_the_next_token_is_learned_from_tokens_and_labels():
    class Model(nn.Module):
        def forward(self, tokens, *, labels):
            return (labels - tokens).float()

    batch = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 4, 6]])
    losses = NextToken().losses(Model(), batch, 0, torch.device("cpu"))
    assert losses.tolist() == [[1, 2, 3]]


def test_filling_spans_gives_the_losses_of_what_was_cut_out():
    spec = transom.load_spec(t5_spec("default"))
    objective = objective_of(spec, 24)
    assert isinstance(objective, FillSpans)
    model = transom.build(spec, seed=0)
    tokens = torch.randint(1, 120, (2, 24))
    losses = objective.losses(model, (tokens, tokens), 3, torch.device("cpu"))
    read, written, labels = objective.corruption(tokens, 3)
    logits = model(read, written, None, None, None)
    torch.testing.assert_close(losses, F.cross_entropy(logits.transpose(1, 2), labels, reduction="none"))


def test_a_short_training_of_a_t5_lowers_the_loss(tmp_path):
    spec = t5_spec(write_text(tmp_path / "text.txt"))
    result = train(spec, out=tmp_path / "run")
    first = np.log(spec["vocab_size"])
    assert result.loss < 0.75 * first
    assert result.validation_loss < 0.75 * first
    assert result.bigram_loss is None
    assert special_ids(tmp_path / "run").start == 0


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        (
            {"objective": "next_token"},
            "the model 't5' is an encoder-decoder, and train.objective is next_token",
            "span",
        ),
        ({}, "the model 'decoder' is no encoder-decoder, and train.objective is span_corruption", "next_token"),
    ],
    ids=["t5", "decoder"],
)
def test_a_model_that_cannot_learn_it_is_refused(changes, text, hint, tmp_path):
    spec = t5_spec(write_text(tmp_path / "text.txt"), **changes)
    if not changes:
        spec["model"] = "decoder"
        spec["config"]["position_embedding_type"] = "rope"
    with pytest.raises(SpecError, match=text) as error:
        train(spec, out=tmp_path / "run")
    assert hint in error.value.hint
    assert error.value.path == "train.objective"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_either_model_may_learn_what_it_can():
    check_objective(transom.load_spec("tiny-llama"), nn.Identity())


def test_texts_that_hold_sentinels_are_refused(tmp_path):
    ids = np.arange(1, 139, dtype=np.uint16).repeat(3)
    np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(
        DataError, match="holds the token id 138; the model's are 0 to 139, of which the last 2 are"
    ) as e:
        train(t5_spec(tmp_path / "ids.npy"), out=tmp_path / "run")
    assert e.value.hint.startswith("vocab_size: 141")
