"""A model of one matrix, with dropout, that trains in a millisecond a step; and a spec that names it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Toy(nn.Module):
    """Fits the model slot; it needs no other part."""

    def __init__(self, config, submodules=None, *, request, tp_group=None):
        super().__init__()
        self.embedding = nn.Embedding(request.vocab_size, config.hidden_size)
        self.middle = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, tokens, *, mask=None, input_pos=None, labels=None):
        hidden = self.dropout(torch.tanh(self.middle(self.embedding(tokens))))
        logits = (hidden @ self.embedding.weight.T).float()
        if labels is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def make_spec(data, **train):
    """Give a spec of the toy as data; keywords go into its train section."""
    settings = {"steps": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.01, "log_every": 1}
    return {
        "name": "toy",
        "model": "toy",
        "vocab_size": 128,
        "max_sequence_length": 8,
        "config": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "hidden_dropout": 0.2},
        "train": settings | {"data": str(data), "eval_every": 4, "checkpoint_every": 3} | train,
    }


def write_text(path):
    """Write a small corpus."""
    path.write_text("the quick brown fox jumps over the lazy dog, and back again. " * 20)
    return path
