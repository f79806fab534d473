"""States name parameters where the reference has them, wherever they lie."""

from __future__ import annotations

import torch
from torch import nn
from transom.checkpoint.module_layout import from_canonical, keep_state_canonical, own_tensors, to_canonical
from transom.transformer.moved_names import move_names, moved_names
from transom.transformer.sharding import ShardedModule


class Layer(ShardedModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.linear.norm = nn.LayerNorm(2)


def test_moved_names_is_empty_until_something_was_moved():
    assert moved_names(Layer()) == {}


def test_states_name_what_moved_where_it_belongs():
    model = nn.Sequential(Layer())
    move_names(model[0], {f"linear.norm.{name}": f"layernorm.{name}" for name in ("weight", "bias")})
    keep_state_canonical(model[0])
    state = model.state_dict()
    assert set(state) == {"0.linear.weight", "0.linear.bias", "0.layernorm.weight", "0.layernorm.bias"}
    changed = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    model.load_state_dict(changed)
    assert torch.equal(model[0].linear.norm.weight, changed["0.layernorm.weight"])
    assert dict(to_canonical(model, own_tensors(model))).keys() == state.keys()
    assert set(from_canonical(model, changed)) == set(own_tensors(model))


def test_sharded_state_names_what_moved_where_it_belongs():
    layer = Layer()
    move_names(layer, {"linear.norm.weight": "layernorm.weight"})
    state = layer.sharded_state_dict("0.")
    assert state["0.layernorm.weight"].key == "0.layernorm.weight"
    assert state["0.layernorm.weight"].data is layer.linear.norm.weight
    assert "0.linear.norm.weight" not in state
    assert state["0.linear.norm.bias"].key == "0.linear.norm.bias"
