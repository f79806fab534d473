from __future__ import annotations

import pytest
import torch
from torch import nn
from transom import TransformerConfig
from transom.distributed.sizes import ParallelSizes
from transom.training.team import Alone, team_of
from transom.training.world import sizes_of_run


def config(**changes: int) -> TransformerConfig:
    return TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=4, **changes)


def test_run_of_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    sizes = sizes_of_run(config())
    assert sizes == ParallelSizes()
    with team_of(sizes, "cpu") as team:
        assert isinstance(team, Alone)
        assert team.describe() == "one process"


def test_one_who_is_alone_takes_everything() -> None:
    alone = Alone()
    batch = torch.arange(6).view(3, 2), torch.arange(6).view(3, 2)
    assert alone.share(batch) is batch
    assert alone.rows(3, 4) == 3
    assert alone.mean(batch[0]) is alone.total(batch[0]) is alone.told(batch[0]) is batch[0]
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert alone.clip(model, 1.0) == 5.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))
    assert alone.parameters(model.requires_grad_(False)) == 0
    assert alone.parameters(model.requires_grad_()) == 2
