"""Implementations of a slot side by side."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transom import override
from transom.comparison.compare import Comparison, Outcome, compare
from transom.comparison.timing import Times
from transom.errors import InputError, SpecError, UnknownImplementationError

SPEC = {
    "name": "small",
    "vocab_size": 32,
    "max_sequence_length": 16,
    "config": {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "normalization": "RMSNorm"},
}


def _compare(slot: str, names: list[str], **settings) -> Comparison:
    return compare(SPEC, slot, implementations=names, rounds=2, shapes=[(1, 8), (2, 4)], **settings)


class Off(nn.Module):
    """A norm whose scale is a tenth too large."""

    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x, /):
        return 1.1 * nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Nan(Off):
    """A norm that divides by zero."""

    def forward(self, x, /):
        return super().forward(x) * math.nan


class Detached(Off):
    """A norm whose outputs are right and whose gradients are lost."""

    def forward(self, x, /):
        return super().forward(x).detach() / 1.1


class Unscaled(Off):
    """A norm that forgets its scale."""

    def forward(self, x, /):
        return nn.functional.rms_norm(x, self.weight.shape, None, self.eps)


class Short(Off):
    """A norm that returns the first token alone, which broadcasts."""

    def forward(self, x, /):
        return (super().forward(x) / 1.1)[:, :1]


class Writing(Off):
    """A norm that is right, and then uses its input as room to work in where nothing is differentiated."""

    def forward(self, x, /):
        y = super().forward(x) / 1.1
        if not torch.is_grad_enabled():
            x.mul_(4.0)
        return y


class Raising(Off):
    """A norm without a kernel for this machine."""

    def forward(self, x, /):
        raise RuntimeError("no kernel image\nis available")


class Unbuilt(Off):
    """A norm whose library is broken."""

    def __init__(self, config, hidden_size, eps):
        raise OSError("libacme.so: cannot open shared object file")


class Stranger(Off):
    """A norm with a weight of its own."""

    def __init__(self, config, hidden_size, eps):
        super().__init__(config, hidden_size, eps)
        self.gain = nn.Parameter(torch.ones(hidden_size))


WRONG = {
    "off": (Off, "its outputs differ by 1.0e-01, where 2e-05 is allowed; its gradients differ by 1.0e-01, where"),
    "nan": (Nan, "its outputs have NaN; its gradients have NaN, at 1 x 8 tokens"),
    "detached": (Detached, "its gradients differ by 1.0e+00, where 2e-04 is allowed, at 1 x 8 tokens"),
    "unscaled": (Unscaled, "its outputs differ by"),
    "short": (Short, "its outputs are [1, 1, 16] and not [1, 8, 16]; its gradients differ by"),
    "writing": (Writing, "it writes into its inputs, at 1 x 8 tokens"),
    "stranger": (
        Stranger,
        "its weights are others than those of torch_norm: layers.0.input_layernorm.gain is [16] and",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_compare_finds_who_computes_something_else_and_leaves_it_out_of_the_order(name):
    cls, why = WRONG[name]
    with override("norm", name, cls):
        found = _compare("norm", ["torch_norm", name])
    assert found.mistakes()[name].startswith(why)
    assert found.order() == ("torch_norm",)
    assert [each.name for each in found.outcomes[2, 4]] == ["torch_norm", name]
    assert found.refused == {}


def test_compare_says_that_a_nan_is_no_small_difference():
    with override("norm", "nan", Nan):
        found = _compare("norm", ["torch_norm", "nan"])
    assert math.isinf(found.outcomes[1, 8][1].output_error)
    assert math.isinf(found.outcomes[1, 8][1].gradient_error)


def test_compare_names_who_raises_and_goes_on():
    with override("norm", "raising", Raising), override("norm", "unbuilt", Unbuilt):
        found = _compare("norm", ["torch_norm", "raising", "unbuilt"])
    assert [each.name for each in found.outcomes[2, 4]] == ["torch_norm"]
    assert found.refused == {
        "raising": "it fails at 1 x 8 tokens: RuntimeError: no kernel image",
        "unbuilt": "it cannot be built: OSError: libacme.so: cannot open shared object file",
    }


def test_compare_refuses_a_reference_that_cannot_run():
    with (
        override("norm", "raising", Raising),
        pytest.raises(InputError, match="raising, which others are compared with, cannot run") as raised,
    ):
        _compare("norm", ["raising", "torch_norm"])
    assert raised.value.failed == ("it fails at 1 x 8 tokens: RuntimeError: no kernel image",)


def test_compare_refuses_a_reference_that_gives_nan():
    with (
        override("norm", "nan", Nan),
        pytest.raises(InputError, match="nan, which others are compared with, gives NaN"),
    ):
        _compare("norm", ["nan", "torch_norm"])


@pytest.mark.parametrize("name", ["auto", "torch_norm | dot_product", ""])
def test_compare_refuses_what_is_not_one_name(name):
    with pytest.raises(InputError, match="is not one implementation's name") as raised:
        _compare("norm", ["torch_norm", name])
    assert raised.value.name == name


def test_compare_takes_an_implementation_once_however_it_is_spelled():
    found = _compare("norm", ["torch_norm", "transom/torch_norm"])
    assert found.order() == ("torch_norm",)


def test_compare_times_a_place_that_the_implementation_fills():
    with override("norm", "off", Off):
        found = _compare("norm", ["torch_norm", "off"], use={"layers.0.input_layernorm": "torch_norm"})
    assert found.path == "layers.0.pre_mlp_layernorm"
    assert "off" in found.mistakes()


def test_compare_times_the_loss():
    found = _compare("loss", ["cross_entropy", "parallel_linear"])
    assert found.path == "loss"
    assert set(found.order()) == {"cross_entropy", "parallel_linear"}


def test_compare_times_parts_of_an_encoder_decoder():
    found = compare("tiny-t5", "cross_attention", implementations=["cross_attention"], rounds=1, shapes=[(1, 4)])
    assert found.path == "decoder.layers.0.cross_attention"
    assert found.order() == ("cross_attention",)


def test_compare_refuses_caches_which_are_made_when_a_model_is_used():
    with pytest.raises(InputError, match="a kv_cache is made when a model is used") as raised:
        _compare("kv_cache", [])
    assert "norm" in raised.value.available
    assert "kv_cache" not in raised.value.available


@pytest.mark.parametrize(("settings", "what"), [({"device": "meta"}, "the device meta"), ({"shapes": []}, "no shape")])
def test_compare_refuses_where_nothing_is_computed(settings, what):
    with pytest.raises(InputError, match=f"with {what} nothing is computed"):
        compare(SPEC, "norm", **settings)


def test_compare_compiles_each_where_it_is_told_to(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **how: compiled.append((type(module).__name__, how)) or module)
    found = _compare("norm", ["torch_norm"], compiles=True)
    assert found.compiled
    assert [how for _, how in compiled] == [{"dynamic": False}] * 2


def test_compare_times_every_shape_and_agrees_where_implementations_agree():
    found = _compare("core_attention", ["dot_product", "torch_dot_product"])
    assert found.path == "layers.0.self_attention.core_attention"
    assert list(found.outcomes) == [(1, 8), (2, 4)]
    for outcomes in found.outcomes.values():
        assert [each.name for each in outcomes] == ["dot_product", "torch_dot_product"]
        for each in outcomes:
            assert len(each.forward.seconds) == len(each.both.seconds) == 2
            assert each.output_error < 1e-5
            assert each.gradient_error < 1e-4
    assert outcomes[0].output_error == outcomes[0].gradient_error == 0.0


def test_compare_says_by_how_much_outputs_and_gradients_differ():
    with override("norm", "off", Off):
        found = _compare("norm", ["torch_norm", "off"])
    _, off = found.outcomes[1, 8]
    assert off.output_error == pytest.approx(0.1, rel=1e-4)
    assert off.gradient_error == pytest.approx(0.1, rel=1e-4)


def test_compare_leaves_gradients_out_of_inference():
    found = _compare("norm", ["torch_norm"], mode="infer")
    (outcome,) = found.outcomes[2, 4]
    assert (outcome.both, outcome.gradient_error) == (None, None)
    assert outcome.counted is outcome.forward


def test_compare_names_who_cannot_serve_and_why():
    spec = {**SPEC, "config": {**SPEC["config"], "attention_dropout": 0.0}}
    found = compare(spec, "core_attention", implementations=["torch_flex", "dot_product"], rounds=1, shapes=[(1, 8)])
    assert [each.name for each in found.outcomes[1, 8]] == ["dot_product"]
    assert "no backward pass on the cpu" in found.refused["torch_flex"]
    assert "torch_flex:" not in found.refused["torch_flex"]


def test_compare_takes_everybody_who_is_installed_core_first():
    found = compare(SPEC, "core_attention", rounds=1, shapes=[(1, 4)])
    names = [each.name for each in found.outcomes[1, 4]]
    assert names[0] == "transom/dot_product"
    assert "transom-torch-dot-product/torch_dot_product" in names


def test_compare_takes_both_linears_together():
    found = _compare("linear", ["torch_linear", "parallel_linear"])
    assert found.path == "layers.0.self_attention.linear_qkv"
    assert found.outcomes[1, 8][1].output_error < 1e-6


def test_compare_refuses_when_nobody_can_serve():
    with pytest.raises(InputError, match="no implementation of core_attention can serve small here") as raised:
        _compare("core_attention", ["torch_flex"])
    assert "torch_flex: " in raised.value.failed[0]


def test_compare_refuses_a_slot_that_the_model_has_no_place_of():
    with pytest.raises(SpecError, match="no part of the model is in slot"):
        _compare("cross_attention", ["cross_attention"])


def test_compare_refuses_an_unknown_name():
    with pytest.raises(UnknownImplementationError):
        _compare("norm", ["torch_nrom"])


@pytest.mark.parametrize("shape", [(0, 4), (1, 0), (1, 17)])
def test_compare_refuses_a_shape_that_does_not_fit(shape):
    with pytest.raises(InputError, match="does not fit small") as raised:
        compare(SPEC, "norm", shapes=[shape])
    assert raised.value.shape == shape


def test_compare_takes_no_more_tokens_than_the_model_unless_asked():
    assert list(compare(SPEC, "norm", implementations=["torch_norm"], rounds=1).outcomes) == [(1, 16), (8, 16)]
    with pytest.raises(InputError) as raised:
        compare(SPEC, "norm", shapes=[(4, 128)])
    assert raised.value.hint == "--shapes 4x16: at least 1 row, and 1 to 16 tokens (its max_sequence_length)"


def test_compare_refuses_to_measure_nothing():
    with pytest.raises(InputError, match="0 rounds measure nothing"):
        compare(SPEC, "norm", rounds=0, shapes=[(1, 4)])


def _outcome(name: str, *seconds: float) -> Outcome:
    return Outcome(name=name, forward=Times(seconds), both=None, output_error=0.0, gradient_error=None)


def test_order_is_by_the_geometric_mean_of_the_ratios():
    # b is twice as slow at one shape and four times as fast at the other; c is 1.2 times as slow at both.
    outcomes = {
        (1, 1): (_outcome("a", 1.0), _outcome("b", 2.0), _outcome("c", 1.2)),
        (8, 1): (_outcome("a", 8.0), _outcome("b", 2.0), _outcome("c", 9.6)),
    }
    found = Comparison(
        slot="norm", path="n", mode="infer", device="cpu", dtype="float32", outcomes=outcomes, refused={}
    )
    assert found.order() == ("b", "a", "c")


def test_times_compare_round_by_round():
    assert Times((1.0, 10.0, 4.0)).ratio(Times((2.0, 10.0, 2.0))) == 1.0
    assert Times((1.0, 10.0, 4.0)).median == 4.0
    assert Times((1.0, 10.0, 4.0)).least == 1.0
    assert math.isclose(Times((3.0,)).ratio(Times((2.0,))), 1.5)
