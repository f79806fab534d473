"""The module: core's torch_linear to the rounding of float32, in a model and out of it; and what it refuses."""

from __future__ import annotations

import pickle

import pytest
import torch
import transom
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transom import TransformerConfig
from transom.errors import ParallelError, ResolutionError
from transom_onednn_linear import product
from transom_onednn_linear.linear import OneDNNLinear

needs_onednn = pytest.mark.skipif(product.missing() is not None, reason="this torch was built without oneDNN")


class Products(TorchDispatchMode):
    """Counts oneDNN's products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) == "mkldnn._linear_pointwise.default"
        return func(*args, **(kwargs or {}))


def made(**changes) -> OneDNNLinear:
    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    arguments = {"bias": True, "skip_bias_add": False, "tp_group": None} | changes
    return OneDNNLinear(4, 6, config=config, init_method=nn.init.normal_, **arguments)


def built(name: str) -> nn.Module:
    return transom.build("tiny-llama", use={"linear": name}, seed=0)


@needs_onednn
def test_model_is_that_of_torch_linear() -> None:
    ids = torch.arange(24).view(2, 12) % 256
    found = []
    for name in ("onednn_linear", "torch_linear"):
        model = built(name)
        with Products() as products:
            loss = model(ids, labels=ids).mean()
            loss.backward()
        found.append((loss, products.count, {path: p.grad for path, p in model.named_parameters()}))
    (ours, count, gradients), (theirs, none, wanted) = found
    linears = sum(isinstance(each, OneDNNLinear) for each in built("onednn_linear").modules())
    assert (count, none) == (2 * linears, 0)  # forward and back through each
    torch.testing.assert_close(ours, theirs)
    assert gradients.keys() == wanted.keys()
    for path, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[path], rtol=1e-4, atol=1e-5, msg=path)


@needs_onednn
def test_checkpoints_are_those_of_torch_linear() -> None:
    ours, theirs = built("onednn_linear"), built("torch_linear")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.arange(12)[None] % 256
    torch.testing.assert_close(ours(ids), theirs(ids))


def test_skipped_bias_is_returned_and_not_added() -> None:
    linear = made(skip_bias_add=True)
    nn.init.ones_(linear.bias)
    out, bias = linear(torch.zeros(2, 4))
    assert bias is linear.bias
    assert out.eq(0).all()


def test_pickled_linear_computes_the_same() -> None:
    linear, x = made(), torch.randn(3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x)[0], linear(x)[0])


def test_model_that_is_cast_computes_in_its_dtype() -> None:
    linear, x = made().double(), torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(linear(x)[0], nn.functional.linear(x, linear.weight, linear.bias))


def test_sizes_are_shown() -> None:
    assert repr(made(bias=False)) == "OneDNNLinear(4, 6, bias=False)"


def test_several_ranks_are_refused() -> None:
    class Two:
        def size(self) -> int:
            return 2

    with pytest.raises(ParallelError, match="onednn_linear computes on one process") as caught:
        made(tp_group=Two())
    assert (caught.value.name, caught.value.ranks) == ("onednn_linear", 2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"device": "cuda"}, "cuda"),
    ],
    ids=["dtype", "device"],
)
def test_what_it_does_not_serve_falls_through_to_the_next_in_the_chain(settings, reason) -> None:
    plan = transom.plan("tiny-llama", use={"linear": "onednn_linear | torch_linear"}, **settings)
    chosen = {node.resolution.chosen.name for node in plan.nodes() if node.resolution.slot.endswith("_linear")}
    assert chosen == {"torch_linear"}
    with pytest.raises(ResolutionError, match=reason):
        transom.plan("tiny-llama", use={"linear": "onednn_linear"}, **settings)


def test_torch_without_onednn_is_said_when_it_is_planned(monkeypatch) -> None:
    monkeypatch.setattr(product, "_pointwise", None)
    with pytest.raises(ResolutionError, match="this torch was built without oneDNN"):
        transom.plan("tiny-llama", use={"linear": "onednn_linear"})
