from __future__ import annotations

from typing import get_args

from transom.slots import SLOTS
from transom.transformer import enums
from transom.transformer.activation import ACTIVATIONS


def test_activation_names_are_those_that_are_implemented_and_asked_for():
    names = set(get_args(enums.ActivationName))
    assert names == set(ACTIVATIONS)
    assert names <= set(SLOTS["activation"].features)


def test_normalizations_are_features_of_the_norm_slot():
    assert {name.lower() for name in get_args(enums.Normalization)} <= set(SLOTS["norm"].features)


def test_rope_scaling_types_are_features_of_the_rotary_slot():
    assert set(get_args(enums.RopeScalingType)) <= set(SLOTS["rotary"].features)
