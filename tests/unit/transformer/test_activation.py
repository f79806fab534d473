from __future__ import annotations

import math

import pytest
import torch
from transom.errors import ConfigError
from transom.transformer.activation import ACTIVATIONS, TorchActivation, activation_of
from transom.transformer.mlp import MLP


def _tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Scalar formulas, independent of torch.
FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": _tanh_gelu,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "squared_relu": lambda x: max(x, 0.0) ** 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}
POINTS = [-6.0, -1.5, -0.3, 0.0, 0.2, 1.0, 4.5]


def test_formulas_cover_all_activations():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_activation_computes_its_formula(make_config, name):
    act = TorchActivation(config=make_config(activation_func=name))
    expected = [FORMULAS[name](x) for x in POINTS]
    assert act(torch.tensor(POINTS, dtype=torch.float64)).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_gated_activation_multiplies_first_half_by_second(make_config, name):
    config = make_config(activation_func=name, gated_linear_unit=True)
    gate, up = POINTS, [2.0, -1.0, 0.5, 3.0, -2.5, 1.0, 0.1]
    expected = [FORMULAS[name](g) * u for g, u in zip(gate, up, strict=True)]
    out = activation_of(config)(torch.tensor(gate + up, dtype=torch.float64))
    assert out.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("clamp", "offset"), [(2.0, 0.0), (None, 1.0), (2.0, 1.0)])
def test_gated_activation_clamps_and_offsets(make_config, clamp, offset):
    config = make_config(
        activation_func="silu", gated_linear_unit=True, activation_func_clamp_value=clamp, glu_linear_offset=offset
    )
    gate, up = [-5.0, 1.0, 3.0, 9.0], [-7.0, 1.5, 2.5, 0.5]
    limit = math.inf if clamp is None else clamp
    expected = [
        FORMULAS["silu"](min(g, limit)) * (max(-limit, min(u, limit)) + offset) for g, u in zip(gate, up, strict=True)
    ]
    out = TorchActivation(config=config)(torch.tensor(gate + up, dtype=torch.float64))
    assert out.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_activation_gradient_is_right(make_config, name, gated):
    act = TorchActivation(config=make_config(activation_func=name, gated_linear_unit=gated))
    x = torch.tensor([-1.5, -0.3, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(act, (x,))


def test_activation_compiles(make_config):
    config = make_config(
        activation_func="quick_gelu", gated_linear_unit=True, activation_func_clamp_value=1.0, glu_linear_offset=1.0
    )
    act, x = TorchActivation(config=config), torch.randn(3, 8)
    assert torch.equal(torch.compile(act, fullgraph=True, backend="aot_eager")(x), act(x))


def test_activation_drops_what_it_gives_in_training_only(make_config):
    config = make_config(activation_func="relu", gated_linear_unit=True, ffn_dropout=0.5)
    x = torch.rand(1000, 8)
    plain = activation_of(config.replace(ffn_dropout=0.0))(x)
    dropping = activation_of(config)
    dropped = dropping(x)
    assert 0.4 < float((dropped == 0).float().mean()) < 0.6
    torch.testing.assert_close(dropped[dropped != 0], 2 * plain[dropped != 0])
    assert torch.equal(dropping.eval()(x), plain)


def test_mlp_drops_inside(make_config, submodules_of):
    config = make_config(ffn_dropout=0.5, hidden_dropout=0.0)
    mlp = MLP(config, submodules_of("mlp", config))
    x = torch.randn(2, 3, 8)
    assert not torch.equal(mlp(x)[0], mlp(x)[0])
    mlp.eval()
    assert torch.equal(mlp(x)[0], mlp(x)[0])
    assert "activation_func" not in "".join(mlp.state_dict())


def test_dropout_inside_the_mlp_is_refused_with_an_activation_module(make_config):
    with pytest.raises(ConfigError, match="it needs use_te_activation_func: false") as error:
        make_config(ffn_dropout=0.1, use_te_activation_func=True)
    assert (error.value.field, error.value.value) == ("ffn_dropout", 0.1)
