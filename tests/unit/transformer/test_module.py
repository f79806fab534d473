from __future__ import annotations

import collections

import pytest
import torch
from transom.errors import ConfigError
from transom.transformer.module import Float16Module, Module


class Caching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.is_first_microbatch = False


def test_module_knows_its_config(make_config):
    config = make_config()
    assert Module(config).config is config


def test_set_is_first_microbatch_tells_all_below_that_want_to_know(make_config):
    root, middle, leaf, other = Module(make_config()), torch.nn.Module(), Caching(), torch.nn.Linear(2, 2)
    middle.leaf = leaf
    root.middle, root.other = middle, other
    root.set_is_first_microbatch()
    assert leaf.is_first_microbatch is True
    assert not hasattr(other, "is_first_microbatch")
    assert not hasattr(root, "is_first_microbatch")


HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Pair = collections.namedtuple("Pair", ["first", "second"])


class Recorder(torch.nn.Module):
    """Keeps what it is called with and returns what it is told to."""

    def __init__(self, returned=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.steps = torch.nn.Parameter(torch.tensor([3]), requires_grad=False)
        self.register_buffer("table", torch.rand(3))
        self.returned = returned

    def forward(self, *args, **kwargs):
        self.seen = args, kwargs
        return self.returned

    def set_input_tensor(self, input_tensor):
        self.given = input_tensor


@pytest.mark.parametrize("field", HALVES)
def test_float16_module_casts_parameters_and_leaves_buffers_and_integers(make_config, field):
    inner = Recorder()
    weight, table = inner.weight, inner.table
    Float16Module(make_config(**{field: True}), inner)
    assert inner.weight is weight
    assert (weight.dtype, inner.steps.dtype) == (HALVES[field], torch.int64)
    assert inner.table is table
    assert table.dtype == torch.float32


def test_float16_module_casts_gradients_that_are_there(make_config):
    inner = Recorder()
    inner.weight.grad = torch.full((2,), 0.5)
    Float16Module(make_config(bf16=True), inner)
    assert inner.weight.grad.dtype == torch.bfloat16
    assert inner.weight.grad.tolist() == [0.5, 0.5]


def test_float16_module_keeps_tied_parameters_tied(make_config):
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    inner[1].weight = inner[0].weight
    Float16Module(make_config(bf16=True), inner)
    assert inner[1].weight is inner[0].weight
    assert inner[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("field", HALVES)
def test_float16_module_casts_nested_inputs(make_config, field):
    x, ids, double, other = torch.rand(2), torch.tensor([1]), torch.rand(2, dtype=torch.float64), object()
    inner = Recorder()
    nested = {"deep": [x, (x, ids)], "pair": Pair(x, other)}
    Float16Module(make_config(**{field: True}), inner)(x, double, nested, none=None, scale=x)
    (first, second, third), options = inner.seen
    halves = [first, third["deep"][0], third["deep"][1][0], third["pair"].first, options["scale"]]
    assert all(half.dtype == HALVES[field] for half in halves)
    assert all(torch.equal(half, x.to(HALVES[field])) for half in halves)
    assert second is double
    assert third["deep"][1][1] is ids
    assert type(third["pair"]) is Pair
    assert third["pair"].second is other
    assert options["none"] is None
    assert nested["deep"][0] is x  # the caller's own is as it was


@pytest.mark.parametrize("field", HALVES)
def test_float16_module_returns_float32_whatever_the_structure(make_config, field):
    half, wide, ids = torch.rand(2).to(HALVES[field]), torch.rand(2, dtype=torch.float64), torch.tensor([1])
    model = Float16Module(make_config(**{field: True}), Recorder((half, [{"a": half, "b": ids}], wide)))
    first, [inside], last = model()
    assert (first.dtype, inside["a"].dtype) == (torch.float32, torch.float32)
    assert torch.equal(first, half.float())
    assert inside["b"] is ids
    assert last is wide


@pytest.mark.parametrize(("pre", "post"), [(True, False), (False, False), (False, True)])
def test_float16_module_casts_only_at_the_ends_of_a_pipeline(make_config, pre, post):
    inner = Recorder(torch.rand(2).bfloat16())
    inner.pre_process, inner.post_process = pre, post
    out = Float16Module(make_config(bf16=True), inner)(torch.rand(2))
    assert inner.seen[0][0].dtype == (torch.bfloat16 if pre else torch.float32)
    assert out.dtype == (torch.float32 if post else torch.bfloat16)


@pytest.mark.parametrize("field", HALVES)
def test_float16_module_lets_gradients_flow_through_the_casts(make_config, field):
    dtype = HALVES[field]
    linear = torch.nn.Linear(3, 2, bias=False)
    x = torch.randn(4, 3, requires_grad=True)
    expected = x.detach().to(dtype), linear.weight.detach().to(dtype)
    out = Float16Module(make_config(**{field: True}), linear)(x)
    out.sum().backward()
    assert torch.equal(out, (expected[0] @ expected[1].T).float())
    assert (x.grad.dtype, linear.weight.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(x.grad, expected[1].float().sum(0).expand(4, 3), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        linear.weight.grad.float(), expected[0].float().sum(0).expand(2, 3), rtol=2e-2, atol=2e-2
    )


def test_float16_module_has_the_states_of_the_model_itself(make_config):
    inner = Recorder()
    model = Float16Module(make_config(bf16=True), inner)
    assert model.state_dict().keys() == inner.state_dict().keys() == {"weight", "steps", "table"}
    assert model.state_dict(prefix="m.").keys() == {"m.weight", "m.steps", "m.table"}
    sharded = model.sharded_state_dict("m.", ((0, 1, 2),), {"data_parallel_rank": 3})
    assert sharded.keys() == {"m.weight", "m.steps", "m.table"}
    assert (sharded["m.weight"].dtype, sharded["m.weight"].global_shape) == (torch.bfloat16, (2, 2))
    assert sharded["m.weight"].replica_id == (0, 3)
    model.load_state_dict(Recorder().state_dict() | {"weight": torch.tensor([5.0, 6.0])})
    assert inner.weight.tolist() == [5.0, 6.0]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    assert model.load_state_dict({}, strict=False).missing_keys == ["weight", "steps", "table"]


def test_float16_module_hands_on_the_input_tensor(make_config):
    inner, x = Recorder(), torch.ones(1)
    Float16Module(make_config(bf16=True), inner).set_input_tensor(x)
    assert inner.given is x


def test_float16_module_refuses_a_config_of_full_precision(make_config):
    with pytest.raises(ConfigError, match="neither fp16 nor bf16 is set") as caught:
        Float16Module(make_config(), Recorder())
    assert (caught.value.field, caught.value.value, caught.value.path) == ("bf16", False, "config.bf16")
