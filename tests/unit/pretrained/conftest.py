"""Small models, untrained: who they are matters, not what they say."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def spec():
    """Give a spec of two layers as data."""
    return {
        "name": "small",
        "vocab_size": 256,
        "max_sequence_length": 24,
        "config": {
            "num_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": "silu",
            "add_bias_linear": False,
            "position_embedding_type": "rope",
            "init_method_std": 0.5,
        },
        "train": {"steps": 2, "batch_size": 2, "eval_batches": 1},
    }
