"""A norm and a linear in one module; the conformance kit compares it with its definition in all forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.errors import ParallelError
from transom.slots import ArchitectureRequest, BuildContext
from transom.transformer import parts
from transom.transformer.linear import ColumnLinear
from transom.transformer.norm import TorchNorm
from transom.transformer.norm_linear import TorchNormLinear


class TwoRanks:
    def size(self):
        return 2


def make(config, kind=TorchNormLinear, tp_group=None, **changes):
    arguments = {
        "init_method": nn.init.normal_, "gather_output": False, "bias": True, "skip_bias_add": False,
        "is_expert": False, "tp_comm_buffer_name": None,
    } | changes  # fmt: skip
    return kind(8, 12, config=config, tp_group=tp_group, **arguments)


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero", [False, True], ids=["gamma", "gamma minus one"])
def test_norm_linear_is_the_norm_then_the_linear(make_config, normalization, zero):
    config = make_config(normalization=normalization, layernorm_zero_centered_gamma=zero, params_dtype="float64")
    both, norm, linear = make(config), TorchNorm(config, 8, config.layernorm_epsilon), make(config, ColumnLinear)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.normal_()
    norm.load_state_dict(both.norm.state_dict())
    linear.load_state_dict({"weight": both.weight, "bias": both.bias})
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    out, bias = both(x)
    assert bias is None
    torch.testing.assert_close(out, linear(norm(x))[0])


def test_norm_linear_draws_what_the_linear_alone_draws(make_config):
    torch.manual_seed(3)
    both = make(make_config())
    torch.manual_seed(3)
    assert torch.equal(both.weight, make(make_config(), ColumnLinear).weight)


def test_norm_linear_refuses_several_ranks(make_config):
    with pytest.raises(ParallelError, match="torch_norm_linear computes on one process") as caught:
        make(make_config(), tp_group=TwoRanks())
    assert caught.value.ranks == 2


def test_norm_linear_refuses_to_put_gradients_off_in_a_graph(make_config):
    around = ArchitectureRequest(context=BuildContext(compile=True), config=make_config(delay_wgrad_compute=True))
    pair = parts.norm_linear(parts.norm(around, 8), parts.column_linear(around, 8, 12, bias=True))
    assert pair.request.features == {"layernorm", "delay_wgrad"}
    assert (pair.slot, pair.request.eps) == ("norm_linear", 1e-5)
    assert [*TorchNormLinear.supports(pair.request)] == [
        "delay_wgrad keeps tensors outside the graph, which a compiled backward pass cannot"
    ]


def test_norm_linear_says_its_sizes(make_config):
    assert "8, 12, bias=True" in repr(make(make_config()))
