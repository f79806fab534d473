from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.specs.train_spec import TrainSpec
from transom.training.optimizer import make_optimizer


def test_weight_decay_falls_on_matrices_alone():
    model = nn.Sequential(nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    matrices, vectors = make_optimizer(model, TrainSpec(weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 2).requires_grad_(False)
    model.bias.requires_grad_(True)
    matrices, vectors = make_optimizer(model, TrainSpec()).param_groups
    assert (matrices["params"], vectors["params"]) == ([], [model.bias])


def test_a_step_is_adamws_formula():
    model = nn.Linear(1, 1)
    weight, bias = model.weight.item(), model.bias.item()
    settings = TrainSpec(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    optimizer = make_optimizer(model, settings)
    model(torch.tensor([[3.0]])).sum().backward()
    optimizer.step()
    # After one step both moments, corrected for their start, are the gradient and its square.
    assert model.weight.item() == pytest.approx(weight * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-3))
    assert model.bias.item() == pytest.approx(bias - 0.1 * 1 / (1 + 1e-3))
