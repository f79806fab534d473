"""Modules that keep their weights in another layout go on, in one process, from what ranks saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model_jobs
import pytest
import state_jobs
import torch
import torch.nn.functional as F
import transom
from torch import Tensor, nn
from transom import LayoutMap, TransformerConfig
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Concat, Transpose
from transom.checkpoint.model_state import model_tensors
from transom.checkpoint.store import open_checkpoint
from transom.distributed.restore import load_sharded_model, load_sharded_training
from transom.errors import CheckpointError
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess


class UnfusedMLP(nn.Module):
    """A gated MLP with a weight each for gate and up, and the last one kept ``[in, out]``."""

    def __init__(self, config: TransformerConfig, submodules: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        h, f = config.hidden_size, config.ffn_hidden_size
        self.gate, self.up = (nn.Linear(h, f, bias=False, dtype=torch.float64) for _ in range(2))
        self.down = nn.Parameter(torch.randn(f, h, dtype=torch.float64))

    def layout_map(self) -> LayoutMap:
        gate_and_up = Rule(("gate.weight", "up.weight"), "linear_fc1.weight", Concat(2))
        return LayoutMap([gate_and_up, Rule("down", "linear_fc2.weight", Transpose())])

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, None]:
        return (F.silu(self.gate(hidden_states)) * self.up(hidden_states)) @ self.down, None

    def backward_dw(self) -> None:
        return None


FIELDS = {"num_query_groups": 4, "add_bias_linear": False}
TIED = {"share_embeddings_and_output_weights": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What two ranks saved, and the loss and norm of the step after it."""
    folder = tmp_path_factory.mktemp("saved")
    seen, _ = ranks(2).run(state_jobs.save_on_ranks, str(folder), {"tp": 2}, FIELDS | TIED)
    return folder, seen[2]


@pytest.fixture
def model() -> Iterator[nn.Module]:
    with transom.override("mlp", "unfused", UnfusedMLP):
        spec = model_jobs.spec(**state_jobs.FIELDS | FIELDS | TIED)
        yield transom.build(spec, use={"mlp": "unfused"}, seed=9)


def test_training_goes_on_in_another_layout(saved: tuple[Path, Any], model: nn.Module) -> None:
    folder, after = saved
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert load_sharded_training(open_checkpoint(folder), model, optimizer) is False
    assert state_jobs.step(model, optimizer, None, 2) == pytest.approx(after, rel=1e-6)


def test_weights_are_those_that_the_reference_loads(saved: tuple[Path, Any], model: nn.Module) -> None:
    load_sharded_model(open_checkpoint(saved[0]), model)
    plain = transom.build(model_jobs.spec(**state_jobs.FIELDS | FIELDS | TIED), seed=3)
    load_sharded_model(open_checkpoint(saved[0]), plain)
    mine, expected = model_tensors(model)[0], model_tensors(plain)[0]
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_weights_of_another_model_are_refused_and_nothing_is_changed(saved: tuple[Path, Any]) -> None:
    with transom.override("mlp", "unfused", UnfusedMLP):
        spec = model_jobs.spec(**state_jobs.FIELDS | FIELDS | TIED | {"ffn_hidden_size": 28})
        other = transom.build(spec, use={"mlp": "unfused"}, seed=9)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight has shape \[48, 16\]; the model's is \[56, 16\]"):
        load_sharded_model(open_checkpoint(saved[0]), other)
    assert all(torch.equal(*pair) for pair in zip(before, other.parameters(), strict=True))
