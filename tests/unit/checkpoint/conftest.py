"""A small model, trained for a few steps, and a manifest for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.checkpoint.manifest import DataPosition, Manifest


class Tiny(nn.Module):
    """Two matrices, a buffer, and an output that shares the embedding when asked."""

    def __init__(self, *, width=6, tie=True):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.middle = nn.Linear(width, width)
        self.output = nn.Linear(width, 11, bias=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if tie:
            self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(torch.relu(self.middle(self.embedding(tokens))))


def train_steps(model, optimizer, steps):
    """Train on random tokens and targets; returns the losses."""
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, 11, (4, 5))
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten().roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.count += 1
        losses.append(loss.item())
    return losses


def make(seed=0, **kwargs):
    """Make a model and its optimizer."""
    torch.manual_seed(seed)
    model = Tiny(**kwargs)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


@pytest.fixture
def trained():
    """Give a model and its optimizer after three steps."""
    model, optimizer = make()
    train_steps(model, optimizer, 3)
    return model, optimizer


@pytest.fixture
def manifest():
    """Give the manifest of step 3."""
    return Manifest(
        transom="0.1.0",
        torch="2.13.0",
        step=3,
        spec={"vocab_size": 11},
        lock={"nodes": []},
        data=DataPosition(seed=7, sequences=12, fingerprint="ab"),
    )


@pytest.fixture
def tools():
    """Give the functions above to the tests, which cannot import a conftest."""
    return make, train_steps
