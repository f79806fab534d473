"""Who computes changes no loss: the packaged recipe trains alike with every implementation, 50 steps long."""

from __future__ import annotations

import json

import pytest
from transom.specs.load import load_spec
from transom.training.run import train


def _losses(folder, use):
    data = load_spec("tiny-llama").to_dict()
    data["max_sequence_length"] = 64
    data["train"] |= {
        "steps": 50,
        "warmup_steps": 5,
        "batch_size": 4,
        "log_every": 1,
        "eval_every": 0,
        "eval_batches": 4,
    }
    data["train"] |= {"checkpoint_every": 0}
    data["config"]["params_dtype"] = "float64"  # in float32, training itself makes large differences of rounding
    train(data, out=folder, use=use)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Give the losses with the reference implementations."""
    use = {"core_attention": "dot_product", "linear": "torch_linear"}
    return _losses(tmp_path_factory.mktemp("reference") / "run", use)


def test_the_reference_learns(reference):
    assert len(reference) == 50
    assert sum(reference[-5:]) < 0.7 * sum(reference[:5])


def test_another_core_attention_gives_the_same_curve(reference, tmp_path):
    other = _losses(tmp_path / "run", {"core_attention": "torch_dot_product", "linear": "torch_linear"})
    assert other == pytest.approx(reference, rel=1e-9)


def test_another_linear_gives_the_same_curve_bit_for_bit(reference, tmp_path):
    assert _losses(tmp_path / "run", {"core_attention": "dot_product", "linear": "parallel_linear"}) == reference
