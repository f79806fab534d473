"""The scenarios of core attention, and the reference that they are held to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transom.slots.core_attention import CORE_ATTENTION
from transom.testing.kernels.combined_scenario import combined
from transom.testing.kernels.context_scenarios import CONTEXT_SCENARIOS
from transom.testing.kernels.core_attention import _expected, _inputs, _mask
from transom.testing.kernels.data_scenarios import DATA_SCENARIOS
from transom.testing.kernels.distance_scenarios import DISTANCE_SCENARIOS
from transom.testing.kernels.scenario import Scenario

SCENARIOS = (*DISTANCE_SCENARIOS, *DATA_SCENARIOS, *CONTEXT_SCENARIOS)


def _visible(scenario: Scenario) -> torch.Tensor:
    """Draw a scenario's own formula, ``[b, n, s, t]``."""
    (b, s, t), (n, _) = scenario.sizes, scenario.heads
    shape = (b, n, s, t)
    if scenario.sees is None:
        return torch.ones(shape, dtype=torch.bool)
    index = [torch.arange(size).reshape([-1 if i == axis else 1 for i in range(4)]) for axis, size in enumerate(shape)]
    return scenario.sees(*index).expand(shape)


def test_scenarios_have_names_of_their_own_and_ask_for_known_features():
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    asked = frozenset().union(*(scenario.asked for scenario in SCENARIOS))
    assert asked | {"dropout"} == set(CORE_ATTENTION.features)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_formula_says_what_the_mask_renders(scenario):
    (b, s, t), (n, _) = scenario.sizes, scenario.heads
    mask = _mask(scenario, None, torch.device("cpu"))
    rendered = None if mask is None else mask.as_bool(s, t, device=torch.device("cpu"), window=scenario.window)
    if mask is not None:
        assert mask.features - {"window"} <= scenario.asked
    if rendered is None:
        rendered = torch.ones(1, 1, s, t, dtype=torch.bool)
    if mask is not None or scenario.window is None:
        assert torch.equal(rendered.expand(b, n, s, t), _visible(scenario))


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.sees is not None], ids=lambda scenario: scenario.name)
def test_scenario_hides_something_and_shows_something(scenario):
    visible = _visible(scenario)
    assert not visible.all()
    assert visible.any()


@pytest.mark.parametrize(
    "scenario",
    [s for s in SCENARIOS if not s.config and s.adds is None and s.bias_shape is None],
    ids=lambda scenario: scenario.name,
)
def test_reference_agrees_with_torchs_math_on_what_both_know(scenario):
    inputs = _inputs(scenario)
    query, key, value = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
    n, g = scenario.heads
    visible = _visible(scenario)
    key, value = (x.repeat_interleave(n // g, dim=1) for x in (key, value))
    reference = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scenario.scale)
    reference = reference.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)
    torch.testing.assert_close(_expected(scenario, {}, inputs)["output"], reference.transpose(1, 2))


def test_reference_agrees_with_one_query_by_hand():
    scenario = Scenario(
        "x", "x", sizes=(1, 1, 2), heads=(1, 1), head_sizes=(1, 1), config={"softmax_type": "off-by-one"}
    )
    inputs = {
        "query": torch.tensor([[[[2.0]]]], dtype=torch.float64),
        "key": torch.tensor([[[[1.0]], [[0.5]]]], dtype=torch.float64),
        "value": torch.tensor([[[[10.0]], [[20.0]]]], dtype=torch.float64),
    }
    first, second = math.exp(2.0), math.exp(1.0)
    expected = (10 * first + 20 * second) / (first + second + 1)
    assert _expected(scenario, {}, inputs)["output"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("declared", "asked"),
    [
        (set(), set()),
        ({"causal", "gqa"}, {"causal", "gqa"}),
        ({"causal", "padding", "keep", "window", "packed", "bias", "softcap"}, None),
    ],
    ids=["nothing", "two", "many"],
)
def test_combined_asks_for_what_is_declared_and_no_more(declared, asked):
    assert combined(frozenset(declared)).asked == (declared if asked is None else asked)
