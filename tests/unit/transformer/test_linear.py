from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transom.errors import ParallelError
from transom.slots import ArchitectureRequest, BuildContext
from transom.transformer import parts
from transom.transformer.linear import ColumnLinear, RowLinear


class TwoRanks:
    def size(self):
        return 2


class OneRank:
    def size(self):
        return 1


COMMON = {"is_expert": False, "tp_comm_buffer_name": None}


def _make(kind, config, *, bias=True, skip=False, tp_group=None, init_method=None):
    common = COMMON | {
        "config": config,
        "init_method": init_method or config.init_method,
        "bias": bias,
        "skip_bias_add": skip,
        "tp_group": tp_group,
    }
    if kind == "column":
        return ColumnLinear(5, 7, gather_output=False, **common)
    return RowLinear(5, 7, input_is_parallel=True, **common)


def _randomise(linear):
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_()
    return linear


kinds = pytest.mark.parametrize("kind", ["column", "row"])
delays = pytest.mark.parametrize("delay", [False, True], ids=["at once", "delayed"])


@kinds
@delays
@pytest.mark.parametrize(("bias", "skip"), [(True, False), (True, True), (False, False), (False, True)])
def test_linear_multiplies_and_adds_or_returns_the_bias(make_config, kind, delay, bias, skip):
    config = make_config(params_dtype="float64", delay_wgrad_compute=delay)
    linear = _randomise(_make(kind, config, bias=bias, skip=skip))
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    product = torch.einsum("bsi,oi->bso", x, linear.weight)
    out, left = linear(x)
    torch.testing.assert_close(out, product + linear.bias if bias and not skip else product)
    assert left is (linear.bias if bias and skip else None)


@kinds
def test_linear_starts_with_drawn_weight_and_zero_bias(make_config, kind):
    torch.manual_seed(2)
    linear = _make(kind, make_config(init_method_std=1.0))
    torch.manual_seed(2)
    assert torch.equal(linear.weight, torch.empty(7, 5).normal_())
    assert linear.bias.tolist() == [0.0] * 7


@kinds
def test_linear_draws_nothing_for_its_bias(make_config, kind):
    torch.manual_seed(2)
    _make(kind, make_config())
    after = torch.get_rng_state()
    torch.manual_seed(2)
    _make(kind, make_config(), bias=False)
    assert torch.equal(torch.get_rng_state(), after)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_linear_has_parameters_in_the_configs_dtype(make_config, kind, dtype):
    linear = _make(kind, make_config(params_dtype=dtype))
    found = {name: (tuple(p.shape), str(p.dtype)) for name, p in linear.named_parameters()}
    assert found == {"weight": ((7, 5), f"torch.{dtype}"), "bias": ((7,), f"torch.{dtype}")}


@kinds
def test_linear_is_made_on_the_meta_device_and_filled_later(make_config, kind):
    config = make_config(init_method_std=1.0)
    with torch.device("meta"):
        linear = _make(kind, config)
    assert linear.weight.is_meta
    torch.manual_seed(2)
    linear.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(2)
    assert torch.equal(linear.weight, torch.empty(7, 5).normal_())
    assert linear.bias.tolist() == [0.0] * 7


@kinds
def test_linear_leaves_its_weight_when_not_to_be_initialised(make_config, kind):
    def refuse(weight):
        raise AssertionError("called")

    linear = _make(kind, make_config(perform_initialization=False), init_method=refuse)
    assert linear.bias.tolist() == [0.0] * 7


def _passes(linear, inputs, cotangents):
    for x, cotangent in zip(inputs, cotangents, strict=True):
        linear(x)[0].backward(cotangent)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_delayed_linear_has_the_same_gradients_to_the_bit_after_backward_dw(make_config, kind, dtype):
    name = str(dtype).removeprefix("torch.")
    config = make_config(params_dtype=name)
    at_once = _randomise(_make(kind, config))
    delayed = _make(kind, config.replace(delay_wgrad_compute=True))
    delayed.load_state_dict(at_once.state_dict())
    inputs = [torch.randn(2, 3, 5, dtype=dtype) for _ in range(3)]
    cotangents = [torch.randn(2, 3, 7, dtype=dtype) for _ in range(3)]
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    _passes(at_once, theirs, cotangents)
    _passes(delayed, ours, cotangents)
    assert delayed.weight.grad is None
    assert torch.equal(delayed.bias.grad, at_once.bias.grad)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(ours, theirs, strict=True))
    delayed.backward_dw()
    assert torch.equal(delayed.weight.grad, at_once.weight.grad)
    delayed.backward_dw()
    assert torch.equal(delayed.weight.grad, at_once.weight.grad)


@kinds
def test_delayed_linear_adds_to_the_gradient_that_there_is(make_config, kind):
    linear = _randomise(_make(kind, make_config(delay_wgrad_compute=True, params_dtype="float64")))
    x, cotangent = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    grad = linear.weight.grad = torch.ones_like(linear.weight)
    linear(x)[0].backward(cotangent)
    linear.backward_dw()
    assert linear.weight.grad is grad
    torch.testing.assert_close(linear.weight.grad, 1 + torch.einsum("to,ti->oi", cotangent, x))


@kinds
def test_delayed_linear_puts_nothing_off_for_a_frozen_weight(make_config, kind):
    linear = _randomise(_make(kind, make_config(delay_wgrad_compute=True)))
    linear.weight.requires_grad_(False)
    x = torch.randn(4, 5, requires_grad=True)
    linear(x)[0].sum().backward()
    linear.backward_dw()
    assert linear.weight.grad is None
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(4, 5))


@kinds
def test_linear_backward_dw_does_nothing_when_nothing_is_delayed(make_config, kind):
    linear = _randomise(_make(kind, make_config()))
    linear(torch.randn(4, 5))[0].sum().backward()
    before = linear.weight.grad.clone()
    linear.backward_dw()
    assert torch.equal(linear.weight.grad, before)


@kinds
@delays
def test_linear_can_be_copied_and_pickled(make_config, kind, delay):
    linear = _randomise(_make(kind, make_config(delay_wgrad_compute=delay)))
    x = torch.randn(2, 5)
    for again in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert torch.equal(again(x)[0], linear(x)[0])


@kinds
def test_linear_refuses_several_ranks(make_config, kind):
    with pytest.raises(ParallelError) as caught:
        _make(kind, make_config(), tp_group=TwoRanks())
    assert caught.value.what == "torch_linear computes on one process and was given a tensor-parallel group of 2."
    assert (caught.value.name, caught.value.ranks) == ("torch_linear", 2)


@kinds
def test_linear_takes_a_group_of_one(make_config, kind):
    assert _make(kind, make_config(), tp_group=OneRank()).weight.shape == (7, 5)


@pytest.mark.parametrize("linear", [ColumnLinear, RowLinear])
@pytest.mark.parametrize(
    ("delay", "compiled", "reasons"),
    [
        (False, True, 0),
        (True, False, 0),
        (True, True, 1),
    ],
)
def test_linear_supports_all_but_compiling_what_is_delayed(make_config, linear, delay, compiled, reasons):
    context = BuildContext(compile=compiled)
    request = ArchitectureRequest(context=context, config=make_config(delay_wgrad_compute=delay))
    wanted = parts.row_linear(request, 5, 7, bias=True).request
    found = list(linear.supports(wanted))
    assert len(found) == reasons
    assert all(reason.startswith("delay_wgrad keeps tensors outside the graph") for reason in found)


@kinds
def test_linear_compiles(make_config, kind):
    linear, x = _randomise(_make(kind, make_config(), skip=True)), torch.randn(2, 3, 5)
    out, bias = torch.compile(linear, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(out, nn.functional.linear(x, linear.weight))
    assert torch.equal(bias, linear.bias)


def test_linear_shows_its_sizes(make_config):
    assert repr(_make("column", make_config())) == "ColumnLinear(5, 7, bias=True)"
    assert repr(_make("row", make_config(), bias=False)) == "RowLinear(5, 7, bias=False)"
