from __future__ import annotations

import pytest
import torch
from torch import nn
from transom import TransformerConfig, load_spec
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError
from transom.training.team import Alone, sizes_of_run, split_over, team_of


def config(**changes: int) -> TransformerConfig:
    return TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=4, **changes)


def test_run_of_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    sizes = sizes_of_run(config())
    assert sizes == ParallelSizes()
    with team_of(sizes, "cpu") as team:
        assert isinstance(team, Alone)
        assert team.describe() == "one process"


def test_run_shares_data_with_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sizes_of_run(config()) == ParallelSizes(dp=8)
    assert sizes_of_run(config(tensor_model_parallel_size=2)) == ParallelSizes(tp=2, dp=4)
    assert sizes_of_run(config(tensor_model_parallel_size=2), tp=4) == ParallelSizes(tp=4, dp=2)


def test_run_shares_sequences_as_the_call_or_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sizes_of_run(config(context_parallel_size=2)) == ParallelSizes(dp=4, cp=2)
    assert sizes_of_run(config(context_parallel_size=2), cp=4, tp=2) == ParallelSizes(tp=2, cp=4)


@pytest.mark.parametrize("field", ["pipeline_model_parallel_size"])
def test_run_refuses_to_share_anything_else(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelError, match=f"{field} is 2; runs share weights, sequences and data alone") as caught:
        sizes_of_run(config(**{field: 2}))
    assert (caught.value.asked_by, caught.value.field) == (f"config.{field}", field)  # type: ignore[attr-defined]


def test_spec_of_a_rank_says_over_how_many_its_weights_are_split() -> None:
    spec = load_spec("tiny-llama")
    assert split_over(spec, ParallelSizes(dp=4)) is spec
    one = split_over(spec, ParallelSizes(tp=2))
    assert one.config == spec.config.replace(tensor_model_parallel_size=2)
    assert one.source == spec.source
    assert split_over(spec, ParallelSizes(cp=2)).config == spec.config.replace(context_parallel_size=2)


def test_one_who_is_alone_takes_everything() -> None:
    alone = Alone()
    batch = torch.arange(6).view(3, 2), torch.arange(6).view(3, 2)
    assert alone.share(batch) is batch
    assert alone.positions(3) is None
    assert alone.mean(batch[0]) is alone.total(batch[0]) is alone.told(batch[0]) is batch[0]
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert alone.clip(model, 1.0) == 5.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))
