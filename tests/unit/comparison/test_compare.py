"""Implementations of a slot side by side."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transom import override
from transom.comparison.compare import Comparison, Outcome, _plans, compare
from transom.comparison.timing import Times
from transom.errors import InputError, SpecError, UnknownImplementationError
from transom.specs.load import load_spec

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


def test_compare_gives_options_of_the_spec_to_those_for_whom_they_are():
    spec = SPEC | {"use": {"kv_cache": "paged"}, "options": {"kv_cache": {"block_size": 4}}}
    plans, refused = _plans(load_spec(spec), "kv_cache", ["paged", "static"], {}, {})
    options = {name: [n.options for n in made.nodes() if n.slot == "kv_cache"] for name, made in plans.items()}
    assert (options["paged"][0].block_size, options["static"], refused) == (4, [None], {})


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
