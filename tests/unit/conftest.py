"""Plans of a third party's small model, for the tests of specs and of the composition point."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from transom.registry.registry import Registry

POINTS = {
    "model": {"fake_model": "Model"},
    "layer": {"fake_layer": "Layer"},
    "mlp": {"fake_mlp": "MLP", "even_mlp": "EvenMLP"},
    "column_linear": {"fake_linear": "Linear"},
    "row_linear": {"fake_linear": "Linear"},
    "norm": {"fake_norm": "Norm"},
    "embedding": {"fake_embedding": "Embedding"},
}
SPEC = {
    "name": "fake",
    "model": "fake_model",
    "vocab_size": 16,
    "max_sequence_length": 8,
    "config": {"num_layers": 3, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 2},
    "use": {
        "layer": "fake_layer",
        "mlp": "fake_mlp",
        "linear": "fake_linear",
        "norm": "fake_norm",
        "embedding": "fake_embedding",
    },
}
CODE = (Path(__file__).parent / "specs" / "acme.py").read_text(encoding="utf-8")


@pytest.fixture
def fakes(site):
    """Install `acme-fakes` and give a registry that sees it."""
    site.install("acme-fakes", POINTS, code=CODE)
    return Registry()


@pytest.fixture
def make_spec():
    """Give a function that makes the spec of the fake model, with changes to its sections."""

    def make(**changes):
        spec = copy.deepcopy(SPEC)
        for name, value in changes.items():
            spec[name] = {**spec[name], **value} if isinstance(spec.get(name), dict) else value
        return spec

    return make


# Found by pytest's plugin of hypothesis too: pytest --hypothesis-profile offline.
settings.register_profile("offline", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
if "HYPOTHESIS_PROFILE" in os.environ:
    settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])
