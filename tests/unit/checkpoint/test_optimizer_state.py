from __future__ import annotations

import pytest
import torch
from transom.checkpoint.optimizer_state import optimizer_tensors, state_to_put
from transom.errors import CheckpointError


def test_optimizer_tensors_are_named_by_parameter_and_entry(trained):
    model, optimizer = trained
    tensors = optimizer_tensors(model, optimizer)
    names = ["embedding.weight", "middle.weight", "middle.bias"]
    assert set(tensors) == {f"{name}.{entry}" for name in names for entry in ("step", "exp_avg", "exp_avg_sq")}
    assert torch.equal(tensors["middle.bias.exp_avg"], optimizer.state[model.middle.bias]["exp_avg"])


def test_optimizer_tensors_of_a_fresh_optimizer_are_none(tools):
    assert optimizer_tensors(*tools[0]()) == {}


def test_state_arrives_bit_for_bit_as_a_copy(trained, tools):
    stored = optimizer_tensors(*trained)
    model, optimizer = tools[0](1)
    optimizer.state.update(state_to_put(model, optimizer, stored, source="f"))
    again = optimizer_tensors(model, optimizer)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[key], stored[key]) and again[key] is not stored[key] for key in stored)


def test_a_parameter_without_any_state_is_accepted(trained, tools):
    stored = {k: v for k, v in optimizer_tensors(*trained).items() if not k.startswith("middle.bias")}
    model, optimizer = tools[0](1)
    assert model.middle.bias not in state_to_put(model, optimizer, stored, source="f")


def test_all_state_that_does_not_fit_is_listed(trained, tools):
    stored = optimizer_tensors(*trained)
    del stored["middle.bias.exp_avg"]
    stored["stray.exp_avg"] = torch.zeros(1)
    stored["middle.weight.exp_avg_sq"] = torch.zeros(2, 2)
    model, optimizer = tools[0](1)
    with pytest.raises(CheckpointError, match="the optimizer's state is not this model's: 4 differences") as caught:
        state_to_put(model, optimizer, stored, source="run/optimizer.safetensors")
    assert caught.value.problems == (
        "middle.bias.exp_avg is missing",
        "middle.weight.exp_avg_sq has shape [2, 2]; the parameter's is [6, 6]",
        "middle.weight.exp_avg_sq is missing",
        "stray.exp_avg belongs to no parameter",
    )
    assert not optimizer.state
