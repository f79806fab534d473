from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transom.errors import ConfigError
from transom.slots import BuildContext
from transom.slots.mlp import MLPRequest
from transom.transformer import mlp as module
from transom.transformer.activation import TorchActivation
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP, MLPSubmodules
from transom.transformer.sharding import ShardedTensor

PLAIN = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
WITH_MODULE = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear, activation_func=TorchActivation)
NAMES = ["gelu", "gelu_tanh", "silu", "relu", "squared_relu", "quick_gelu", "sigmoid"]


def _randomise(mlp):
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_(std=0.5)
    return mlp


@pytest.fixture
def make_mlp(make_config):
    def make(*, expert=False, input_size=None, ffn=None, **fields):
        config = make_config(**({"params_dtype": "float64", "hidden_size": 8, "ffn_hidden_size": 12} | fields))
        submodules = WITH_MODULE if config.use_te_activation_func else PLAIN
        return _randomise(MLP(config, submodules, expert, input_size, ffn))

    return make


def _x(width=8, dtype=torch.float64):
    return torch.randn(2, 3, width, dtype=dtype)


MEASURED = ["mlp_gelu_bias", "mlp_swiglu_nobias", "mlp_swiglu_per_token_scale_nobias"]
FIELDS = ("num_layers", "hidden_size", "num_attention_heads", "gated_linear_unit", "activation_func", "add_bias_linear")


@pytest.mark.parametrize("name", MEASURED)
def test_mlp_agrees_with_measured_case(make_config, case, name):
    measured = case(f"megatron/{name}")
    given, outputs, grads = measured["inputs"], measured["outputs"], measured["grads"]
    config = make_config(**{k: v for k, v in measured["meta"]["config"].items() if k in FIELDS})
    mlp = MLP(config, PLAIN)
    mlp.load_state_dict(measured["state_dict"])
    tensors = {k: v.clone().requires_grad_(f"input.{k}" in grads) for k, v in given.items()}
    output, bias = mlp(**tensors)
    torch.testing.assert_close(output, outputs["output"], rtol=0, atol=1e-5)
    assert (bias is None) == ("output_bias" not in outputs)
    if bias is not None:
        torch.testing.assert_close(bias, outputs["output_bias"], rtol=0, atol=1e-5)
    (output if bias is None else output + bias).backward(grads["cotangent"])
    found = {f"param.{k}": p.grad for k, p in mlp.named_parameters()}
    found |= {f"input.{k}": t.grad for k, t in tensors.items() if t.requires_grad}
    assert found.keys() == grads.keys() - {"cotangent"}
    for key, grad in found.items():
        torch.testing.assert_close(grad, grads[key], rtol=0, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def _formula(mlp, x, scale=None):
    """Token by token, with a scalar activation: what the module must compute."""
    config, rows = mlp.config, []
    acts = {
        "silu": lambda v: v / (1 + torch.exp(-v)),
        "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / math.sqrt(2))),
    }
    act = acts[config.activation_func]
    w1, w2 = mlp.linear_fc1.weight, mlp.linear_fc2.weight
    b1 = 0 if mlp.linear_fc1.bias is None else mlp.linear_fc1.bias
    b2 = 0 if mlp.linear_fc2.bias is None else mlp.linear_fc2.bias
    for i, row in enumerate(x.reshape(-1, x.shape[-1])):
        inner = (w1 * row).sum(-1) + b1
        if config.gated_linear_unit:
            half, c = len(inner) // 2, config.activation_func_clamp_value or math.inf
            gate, up = torch.clamp(inner[:half], max=c), torch.clamp(inner[half:], -c, c)
            inner = act(gate) * (up + config.glu_linear_offset)
        else:
            inner = act(inner)
        factor = 1.0 if scale is None else scale.flatten()[i]
        rows.append((w2 * (inner * factor)).sum(-1) + b2 * factor)
    return torch.stack(rows).view(*x.shape[:-1], -1)


def _whole(result):
    output, bias = result
    return output if bias is None else output + bias


kinds = pytest.mark.parametrize(
    "fields",
    [
        {"activation_func": "gelu"},
        {"activation_func": "gelu", "add_bias_linear": False},
        {"activation_func": "silu", "gated_linear_unit": True},
        {
            "activation_func": "silu",
            "gated_linear_unit": True,
            "activation_func_clamp_value": 0.7,
            "glu_linear_offset": 1.0,
        },
    ],
    ids=["gelu", "no bias", "swiglu", "clamped"],
)
as_module = pytest.mark.parametrize("use_module", [False, True], ids=["function", "module"])


@kinds
@as_module
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_mlp_computes_its_formula(make_mlp, fields, use_module, scaled):
    mlp, x = make_mlp(use_te_activation_func=use_module, **fields), _x()
    scale = torch.rand(2, 3, dtype=torch.float64) if scaled else None
    torch.testing.assert_close(_whole(mlp(x, scale)), _formula(mlp, x, scale), rtol=1e-10, atol=1e-10)


def test_mlp_returns_its_output_bias_unadded(make_mlp):
    mlp, x = make_mlp(), _x()
    output, bias = mlp(x)
    assert bias is mlp.linear_fc2.bias
    torch.testing.assert_close(output, _formula(mlp, x) - bias)


def test_mlp_adds_its_output_bias_itself_when_scaled(make_mlp):
    mlp, x, scale = make_mlp(), _x(), torch.rand(2, 3, dtype=torch.float64)
    output, bias = mlp(x, per_token_scale=scale)
    assert bias is None
    torch.testing.assert_close(output, _formula(mlp, x, scale))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", NAMES)
def test_mlp_gradients_are_right_with_scale(make_mlp, name, gated):
    mlp = make_mlp(activation_func=name, gated_linear_unit=gated, ffn_hidden_size=3)
    x, scale = _x().requires_grad_(), torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, scale: mlp(x, scale)[0], (x, scale))


def test_mlp_scale_works_for_flat_tokens(make_mlp):
    mlp, x, scale = make_mlp(), _x(), torch.rand(2, 3, dtype=torch.float64)
    torch.testing.assert_close(mlp(x.flatten(0, 1), scale.flatten())[0], mlp(x, scale)[0].flatten(0, 1))


def test_mlp_scaled_in_float32_keeps_the_dtype_of_its_input(make_mlp):
    mlp = make_mlp(params_dtype="bfloat16")
    output, _ = mlp(_x(dtype=torch.bfloat16), torch.rand(2, 3))
    assert output.dtype == torch.bfloat16


def test_mlp_leaves_its_inputs_as_they_are(make_mlp):
    mlp, x, scale = make_mlp(), _x(), torch.rand(2, 3, dtype=torch.float64)
    before = x.clone(), scale.clone()
    mlp(x, scale)
    assert torch.equal(x, before[0])
    assert torch.equal(scale, before[1])


@pytest.mark.parametrize("flag", [False, True])
def test_fusion_flag_never_changes_gelu_to_its_approximation(make_mlp, flag):
    torch.manual_seed(0)
    mlp, x = make_mlp(bias_activation_fusion=flag), _x()
    torch.testing.assert_close(_whole(mlp(x)), _formula(mlp, x), rtol=1e-10, atol=1e-10)


def test_mlp_refuses_unknown_arguments(make_mlp):
    with pytest.raises(TypeError, match="per_token_scales"):
        make_mlp()(_x(), per_token_scales=torch.rand(2, 3))


@pytest.mark.parametrize(("gated", "stride"), [(False, 1), (True, 2)])
def test_mlp_sizes_follow_the_config_or_the_arguments(make_mlp, gated, stride):
    mlp = make_mlp(gated_linear_unit=gated)
    assert mlp.linear_fc1.weight.shape == (stride * 12, 8)
    assert mlp.linear_fc2.weight.shape == (8, 12)
    mlp = make_mlp(gated_linear_unit=gated, ffn=20, input_size=6, expert=True)
    assert mlp.linear_fc1.weight.shape == (stride * 20, 6)
    assert mlp.linear_fc2.weight.shape == (8, 20)
    assert mlp(_x(6))[0].shape == (2, 3, 8)


def test_expert_must_say_its_inner_width(make_mlp):
    with pytest.raises(ConfigError) as caught:
        make_mlp(expert=True)
    assert isinstance(caught.value, ValueError)
    assert caught.value.what == "an expert's ffn_hidden_size is None; the config's is that of a whole MLP."
    assert (caught.value.field, caught.value.value, caught.value.hint) == (
        "ffn_hidden_size",
        None,
        "give ffn_hidden_size",
    )


def test_mlp_refuses_to_go_without_the_activation_module_it_is_told_to_use(make_config):
    with pytest.raises(ConfigError) as caught:
        MLP(make_config(use_te_activation_func=True), PLAIN)
    assert caught.value.what == "use_te_activation_func is True and submodules.activation_func is None."
    assert (caught.value.field, caught.value.value) == ("use_te_activation_func", True)


class Recorder(nn.Module):
    """A linear that writes down how it was made."""

    calls: list

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.given = (args, kwargs)

    def forward(self, x, /):
        return x, None

    def backward_dw(self):
        self.calls.append(self.given[1]["tp_comm_buffer_name"])


def test_mlp_builds_its_linears_as_published(make_config):
    config = make_config(hidden_size=32, gated_linear_unit=True, add_bias_linear=False)
    mlp = MLP(config, MLPSubmodules(linear_fc1=Recorder, linear_fc2=Recorder))
    common = {"config": config, "bias": False, "skip_bias_add": True, "is_expert": False, "tp_group": None}
    assert mlp.linear_fc1.given == (
        (32, 256),
        common | {"init_method": config.init_method, "gather_output": False, "tp_comm_buffer_name": "fc1", "stride": 2},
    )
    assert mlp.linear_fc2.given == (
        (128, 32),
        common
        | {"init_method": config.output_layer_init_method, "input_is_parallel": True, "tp_comm_buffer_name": "fc2"},
    )


def test_mlp_backward_dw_asks_the_last_linear_first(make_config):
    mlp = MLP(make_config(), MLPSubmodules(linear_fc1=Recorder, linear_fc2=Recorder))
    mlp.linear_fc1.calls = mlp.linear_fc2.calls = calls = []
    mlp.backward_dw()
    assert calls == ["fc2", "fc1"]


def test_mlp_weight_gradients_wait_for_backward_dw(make_mlp):
    torch.manual_seed(0)
    at_once, delayed = make_mlp(), make_mlp(delay_wgrad_compute=True)
    delayed.load_state_dict(at_once.state_dict())
    x = _x()
    for mlp in (at_once, delayed):
        _whole(mlp(x)).square().sum().backward()
    weights = ("linear_fc1.weight", "linear_fc2.weight")
    assert all(delayed.get_parameter(name).grad is None for name in weights)
    delayed.backward_dw()
    for name, parameter in at_once.named_parameters():
        assert torch.equal(delayed.get_parameter(name).grad, parameter.grad), name


def test_mlp_parts_ask_for_what_is_built(make_config):
    config = make_config(gated_linear_unit=True, use_te_activation_func=True, activation_func="silu")
    request = MLPRequest(context=BuildContext(), config=config, is_expert=True, input_size=6, ffn_hidden_size=20)
    found = MLP.parts(request)
    assert {name: part.slot for name, part in found.items()} == {
        "linear_fc1": "column_linear",
        "linear_fc2": "row_linear",
        "activation_func": "activation",
    }
    fc1, fc2 = found["linear_fc1"].request, found["linear_fc2"].request
    assert (fc1.input_size, fc1.output_size, fc1.stride, fc1.bias, fc1.is_expert) == (6, 40, 2, True, True)
    assert (fc2.input_size, fc2.output_size, fc2.stride, fc2.bias, fc2.is_expert) == (20, 8, 1, True, True)
    assert found["activation_func"].request.features == {"silu", "gated"}


def test_mlp_parts_leave_the_activation_out_when_it_is_no_module(make_config):
    request = MLPRequest(context=BuildContext(), config=make_config())
    assert MLP.parts(request).keys() == {"linear_fc1", "linear_fc2"}
    assert MLP.parts(request).keys() <= {f.name for f in dataclasses.fields(MLP.Submodules)}


def test_mlp_draws_the_same_weights_whoever_computes_the_activation(make_config):
    drawn = []
    for use_module in (False, True):
        torch.manual_seed(0)
        mlp = MLP(make_config(use_te_activation_func=use_module), WITH_MODULE if use_module else PLAIN)
        drawn.append(mlp.state_dict())
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


def test_mlp_draws_its_weights_as_the_config_says(make_config):
    config = make_config(hidden_size=256, num_layers=8)
    torch.manual_seed(0)
    mlp = MLP(config, PLAIN)
    assert mlp.linear_fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert mlp.linear_fc2.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)


@kinds
@as_module
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_mlp_compiles(make_mlp, fields, use_module, scaled):
    mlp = make_mlp(use_te_activation_func=use_module, params_dtype="float32", **fields)
    x, scale = _x(dtype=torch.float32), torch.rand(2, 3) if scaled else None
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_whole(compiled(x, scale)), _whole(mlp(x, scale)))


COLUMN = {
    "config": "KEYWORD_ONLY",
    "init_method": "KEYWORD_ONLY",
    "gather_output": "KEYWORD_ONLY",
    "bias": "KEYWORD_ONLY",
    "skip_bias_add": "KEYWORD_ONLY",
    "is_expert": "KEYWORD_ONLY",
    "tp_comm_buffer_name": "KEYWORD_ONLY",
    "tp_group": "KEYWORD_ONLY",
    "stride": "KEYWORD_ONLY",
}
ROW = {k: v for k, v in COLUMN.items() if k not in ("gather_output", "stride")} | {"input_is_parallel": "KEYWORD_ONLY"}
SIZES = {"input_size": "POSITIONAL_ONLY", "output_size": "POSITIONAL_ONLY"}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (module.LinearFc1Builder.__call__, SIZES | COLUMN),
        (module.LinearFc2Builder.__call__, SIZES | ROW),
        (module.TEActivationFunctionBuilder.__call__, {"config": "KEYWORD_ONLY"}),
        (module.LinearFc1Interface.forward, {"hidden_states": "POSITIONAL_ONLY"}),
        (module.LinearFc2Interface.forward, {"hidden_states": "POSITIONAL_ONLY"}),
        (module.TEActivationFunctionInterface.forward, {"input_": "POSITIONAL_ONLY"}),
        (
            MLP.__init__,
            dict.fromkeys(
                ["config", "submodules", "is_expert", "input_size", "ffn_hidden_size", "tp_group"],
                "POSITIONAL_OR_KEYWORD",
            ),
        ),
        (MLP.forward, dict.fromkeys(["hidden_states", "per_token_scale"], "POSITIONAL_OR_KEYWORD")),
        (MLP.backward_dw, {}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_published_signatures_are_kept(call, expected):
    found = {p.name: p.kind.name for p in inspect.signature(call).parameters.values() if p.name != "self"}
    assert found == expected


def test_mlp_needs_no_more_than_the_published_submodules():
    names = [f.name for f in dataclasses.fields(MLPSubmodules)]
    assert names == ["linear_fc1", "linear_fc2", "activation_func"]
    assert MLPSubmodules(ColumnLinear, RowLinear).activation_func is None


def test_measured_swiglu_differs_when_gate_and_up_are_swapped(make_config, case):
    # The case can tell the halves apart: the test above could fail.
    measured = case("megatron/mlp_swiglu_nobias")
    w1, w2 = measured["state_dict"]["linear_fc1.weight"], measured["state_dict"]["linear_fc2.weight"]
    up, gate = F.linear(measured["inputs"]["hidden_states"], w1).chunk(2, -1)
    swapped = F.linear(F.silu(gate) * up, w2)
    assert (swapped - measured["outputs"]["output"]).abs().max() > 1e-3


@pytest.mark.parametrize("singleton", [False, True], ids=["one key", "two keys"])
def test_mlp_saves_a_gated_first_linear_as_gate_and_up(make_mlp, singleton):
    mlp = make_mlp(gated_linear_unit=True, activation_func="silu")
    state = mlp.sharded_state_dict("mlp.", ((0, 2, 3),), {"singleton_local_shards": singleton})
    assert state.keys() == mlp.state_dict(prefix="mlp.").keys()
    assert isinstance(state["mlp.linear_fc2.weight"], ShardedTensor)
    for name, tensor in {"weight": mlp.linear_fc1.weight, "bias": mlp.linear_fc1.bias}.items():
        key = f"mlp.linear_fc1.{name}"
        shards = state[key].build()
        assert [shard.key for shard in shards] == ([f"{key}_w", f"{key}_v"] if singleton else [key, key])
        assert all(torch.equal(*pair) for pair in zip((s.data for s in shards), tensor.chunk(2), strict=True))
        assert shards[0].global_shape == (3, 12 if singleton else 24, *tensor.shape[1:])


def test_mlp_saves_a_plain_first_linear_whole(make_mlp):
    state = make_mlp().sharded_state_dict()
    assert {name: shard.global_shape for name, shard in state.items()} == {
        "linear_fc1.weight": (12, 8),
        "linear_fc1.bias": (12,),
        "linear_fc2.weight": (8, 12),
        "linear_fc2.bias": (8,),
    }
