"""An implementation with other parameters has the state of the reference: weights, hooks, optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transom
from torch import Tensor, nn
from transom import LayoutMap, TransformerConfig
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Concat, Stack, Transpose
from transom.checkpoint.model_state import model_tensors, put_tensors, weights_to_put
from transom.checkpoint.module_layout import keep_state_canonical, own_tensors, to_canonical
from transom.checkpoint.optimizer_state import optimizer_tensors, state_to_put
from transom.errors import CheckpointError

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])
SPEC: dict[str, Any] = {
    "vocab_size": 11,
    "max_sequence_length": 8,
    "config": {
        "num_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "ffn_hidden_size": 12,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": 0.3,
    },
}


class UnfusedMLP(nn.Module):
    """A gated MLP with a weight each for gate and up, and the last one kept ``[in, out]``."""

    def __init__(self, config: TransformerConfig, submodules: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        h, f = config.hidden_size, config.ffn_hidden_size
        self.gate, self.up = nn.Linear(h, f, bias=False), nn.Linear(h, f, bias=False)
        self.down = nn.Parameter(torch.randn(f, h))

    def layout_map(self) -> LayoutMap:
        return LayoutMap(
            [
                Rule(("gate.weight", "up.weight"), "linear_fc1.weight", Concat(2)),
                Rule("down", "linear_fc2.weight", Transpose()),
            ]
        )

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, None]:
        return (F.silu(self.gate(hidden_states)) * self.up(hidden_states)) @ self.down, None

    def backward_dw(self) -> None:
        return None


@pytest.fixture
def unfused() -> Any:
    """Give a function that builds the model with that MLP."""
    with transom.override("mlp", "unfused", UnfusedMLP):
        yield lambda seed=1, **changes: transom.build(SPEC | changes, use={"mlp": "unfused"}, seed=seed)


def reference(seed: int = 0) -> nn.Module:
    return transom.build(SPEC, seed=seed)


def test_state_dict_has_the_names_and_layouts_of_the_reference(unfused: Any) -> None:
    model, plain = unfused(), reference()
    state, wanted = model.state_dict(), plain.state_dict()
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in wanted.items()}
    assert "layers.0.mlp.gate.weight" in own_tensors(model)


def test_states_load_both_ways_and_compute_the_same(unfused: Any) -> None:
    model, plain = unfused(), reference()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    other = reference(seed=5)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(other.state_dict().values(), plain.state_dict().values(), strict=True))


def test_states_under_the_modules_own_names_load_too(unfused: Any) -> None:
    model, again = unfused(), unfused(seed=2)
    again.load_state_dict({name: tensor.detach() for name, tensor in own_tensors(model).items()})
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_weights_of_checkpoints_are_canonical(unfused: Any) -> None:
    model, plain = unfused(), reference()
    tensors, tied = model_tensors(plain)
    put_tensors(weights_to_put(model, tensors, tied, source="weights"))
    stored, _ = model_tensors(model)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))


def test_weights_that_do_not_fit_are_told_by_canonical_names(unfused: Any) -> None:
    tensors, tied = model_tensors(reference())
    tensors["layers.1.mlp.linear_fc1.weight"] = torch.zeros(3, 8)
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight has shape \[3, 8\]; the model's is \[24, 8\]"):
        weights_to_put(unfused(), tensors, tied, source="weights")


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> nn.Module:
    for _ in range(steps):
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).mean().backward()
        optimizer.step()
    return model


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def test_optimizer_state_is_canonical_and_training_goes_on_elsewhere(unfused: Any) -> None:
    """Two steps with one implementation and two with the other train as four with either."""
    model, plain = unfused(), reference()
    model.load_state_dict(plain.state_dict())
    first, other = adamw(model), adamw(plain)
    trained(model, first, 2)
    state = optimizer_tensors(model, first)
    trained(plain, other, 2)
    wanted = optimizer_tensors(plain, other)
    assert state.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(state[name], wanted[name], msg=name)

    goes_on = reference(seed=7)
    goes_on.load_state_dict(model.state_dict())
    second = adamw(goes_on)
    second.state.update(state_to_put(goes_on, second, state, source="optimizer"))
    back = unfused(seed=8)
    back.load_state_dict(plain.state_dict())
    third = adamw(back)
    third.state.update(state_to_put(back, third, wanted, source="optimizer"))
    expected = trained(plain, other, 2)(TOKENS)
    torch.testing.assert_close(trained(goes_on, second, 2)(TOKENS), expected)
    torch.testing.assert_close(trained(back, third, 2)(TOKENS), expected)


def test_parts_of_one_parameter_must_have_taken_the_same_steps(unfused: Any) -> None:
    model = unfused()
    optimizer = adamw(model)
    trained(model, optimizer, 1)
    optimizer.state[model.layers[0].mlp.gate.weight]["step"] += 1
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight\.step is 1\.0 and 2\.0 in parts of one parameter"):
        optimizer_tensors(model, optimizer)


def test_maps_of_modules_inside_others_come_first() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theirs = nn.Parameter(torch.randn(2, 3))

        def layout_map(self) -> LayoutMap:
            return LayoutMap([Rule("theirs", "ours", Transpose())])

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Inner(), Inner()
            for module in (self.a, self.b, self):
                keep_state_canonical(module)

        def layout_map(self) -> LayoutMap:
            return LayoutMap([Rule(("a.ours", "b.ours"), "both", Stack(2))])

    outer = Outer()
    expected = torch.stack([outer.a.theirs.T, outer.b.theirs.T])
    assert torch.equal(to_canonical(outer, own_tensors(outer))["both"], expected)
    state = outer.state_dict()
    assert list(state) == ["both"]
    assert torch.equal(state["both"], expected)
    again = Outer()
    again.load_state_dict(state)
    assert torch.equal(again.b.theirs, outer.b.theirs)
