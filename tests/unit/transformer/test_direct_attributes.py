"""Attributes found directly: a module behaves as any other, and looking them up calls no `__getattr__`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transom.transformer.direct_attributes import buffer, parameter, submodule


class Scaled(nn.Module):
    inner: Any = submodule()
    scale: nn.Parameter = parameter()
    shift: Tensor = buffer()

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.full((2,), 3.0))
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale + self.shift


def test_module_lists_what_it_has() -> None:
    module = Scaled()
    assert sorted(module.state_dict()) == ["inner.bias", "inner.weight", "scale", "shift"]
    assert module.inner is module.get_submodule("inner")
    assert module.scale is module.get_parameter("scale")


def test_lookup_does_not_pass_through_getattr(monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = Scaled(), []
    monkeypatch.setattr(Scaled, "__getattr__", lambda self, name: asked.append(name), raising=False)
    assert (module.inner is None, module.scale is None, module.shift is None) == (False, False, False)
    assert asked == []


def test_missing_attribute_is_told_as_by_any_module() -> None:
    module = Scaled()
    del module.inner
    with pytest.raises(AttributeError, match="'Scaled' object has no attribute 'inner'"):
        _ = module.inner
    assert not hasattr(module, "inner")


@pytest.mark.parametrize("value", [None, torch.relu], ids=["none", "function"])
def test_what_is_no_module_may_take_a_module_s_place(value: Any) -> None:
    module = Scaled()
    del module.inner
    module.inner = value
    assert module.inner is value


def test_replaced_state_is_used_at_once() -> None:
    module, x = Scaled(), torch.ones(2)
    state = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    assert torch.func.functional_call(module, state, x).tolist() == [0, 0]
    module.load_state_dict(state, assign=True)
    assert module(x).tolist() == [0, 0]
    module.inner = nn.Identity()
    module.scale = nn.Parameter(torch.full((2,), 2.0))
    assert module(x).tolist() == [2, 2]
    assert module.to("meta").scale.device.type == "meta"


def test_copies_have_their_own() -> None:
    module = Scaled()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.scale is not module.scale
        assert torch.equal(other(torch.ones(2)), module(torch.ones(2)))


def test_parameter_may_be_computed() -> None:
    module, x = Scaled(), torch.ones(2)
    expected = module.inner(x) * 6 + 1
    twice = nn.Module()
    twice.forward = lambda scale: 2 * scale  # type: ignore[method-assign]
    parametrize.register_parametrization(module, "scale", twice)
    torch.testing.assert_close(module(x), expected)


def test_parameter_may_be_pruned() -> None:
    module = Scaled()
    prune.l1_unstructured(module, "scale", amount=1)  # type: ignore[no-untyped-call]
    assert sorted(module.scale.tolist()) == [0, 3]


def test_module_compiles_into_one_graph() -> None:
    module, x = Scaled(), torch.randn(2)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    with torch.no_grad():
        module.scale.mul_(2)
    torch.testing.assert_close(compiled(x), module(x))
