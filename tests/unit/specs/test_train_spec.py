from __future__ import annotations

import math
import re

import msgspec
import pytest
from transom.specs.train_spec import TrainSpec


def test_train_spec_has_a_default_for_every_field():
    assert TrainSpec().sources == ("default",)
    assert msgspec.convert({}, TrainSpec, strict=True) == TrainSpec()


def test_train_spec_reads_back_what_it_writes():
    spec = TrainSpec(data=("a", "b"), betas=(0.8, 0.9), steps=3, sequence_length=7)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TrainSpec) == spec


def test_sources_of_a_list_are_its_entries():
    assert TrainSpec(data=("a", "b")).sources == ("a", "b")


def test_final_learning_rate_is_a_tenth_unless_given():
    assert TrainSpec(learning_rate=0.5).final_learning_rate == pytest.approx(0.05)
    assert TrainSpec(learning_rate=0.5, min_learning_rate=0.0).final_learning_rate == 0


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("batch_size", 0, "1 or more"),
        ("accumulate", 0, "1 or more"),
        ("steps", 0, "1 or more"),
        ("log_every", -1, "1 or more"),
        ("eval_batches", 0, "1 or more"),
        ("sequence_length", 0, "1 or more"),
        ("warmup_steps", -1, "0 or more"),
        ("eval_every", -1, "0 or more"),
        ("checkpoint_every", -1, "0 or more"),
        ("keep_checkpoints", -1, "0 or more"),
        ("weight_decay", -0.1, "0 or more, and finite"),
        ("grad_clip", math.inf, "0 or more, and finite"),
        ("learning_rate", 0.0, "more than 0, and finite"),
        ("learning_rate", math.nan, "more than 0, and finite"),
        ("eps", 0.0, "more than 0, and finite"),
        ("validation_fraction", 0.0, "between 0 and 1, without either"),
        ("validation_fraction", 1.0, "between 0 and 1, without either"),
        ("min_learning_rate", 0.1, "from 0 to learning_rate (0.001)"),
        ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("seed", -1, "from 0 to 2**63 - 1"),
        ("data", (), 'a path, a list of paths, or "default"'),
        ("data", ("a", ""), 'a path, a list of paths, or "default"'),
        ("tokenizer", "", '"bytes" or the path of a tokenizer.json'),
    ],
)
def test_train_spec_refuses_a_value_and_says_what_would_be_right(field, value, right):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}; it must be {right}")):
        TrainSpec(**{field: value})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"steps": "9"}, "Expected `int`, got `str`"),
        ({"step": 9}, "unknown field `step`"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_train_spec_is_strict_about_types_and_names(data, text):
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert(data, TrainSpec, strict=True)
