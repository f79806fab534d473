"""T5s split over processes compute what one process does: logits, losses and every gradient, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import t5_jobs
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

TIED = {t5_jobs.TIED: True}
VARIANTS: dict[str, dict[str, Any]] = {
    "relative": {},
    "tied_with_bias": TIED,
    "tied_and_scaled": TIED | {"options": {"model": {"scale_logits": True, "tied_bias": False}}},
    "sequence": {"sequence_parallel": True},
    "sequence_tied": {"sequence_parallel": True, **TIED},
    "biases": {"add_bias_linear": True, "normalization": "LayerNorm", "gated_linear_unit": False},
    "sequence_learned": {
        "position_embedding_type": "learned_absolute",
        "sequence_parallel": True,
        "add_bias_linear": True,
    },
    "grouped_heads": {"num_query_groups": 2, "position_embedding_type": "rope", "sequence_parallel": True},
    "other_encoder": {"encoder": {"num_layers": 3, "num_attention_heads": 8, "kv_channels": 4}},
    "recomputed": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def check(changes: dict[str, Any], size: int, backend: str | None = None) -> None:
    alone = {name: value for name, value in changes.items() if name != "sequence_parallel"}
    expected = t5_jobs.run_model(t5_jobs.spec(**alone), None)
    for rank, found in enumerate(ranks(size).run(t5_jobs.on_ranks, changes, backend)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error <= 1e-12, f"{name} on rank {rank}: {error}"


@pytest.mark.parametrize(
    ("variant", "size"),
    [*((variant, 2) for variant in VARIANTS), *((v, 4) for v in ("sequence_tied", "grouped_heads"))],
)
def test_ranks_compute_what_one_process_does(variant: str, size: int) -> None:
    check(VARIANTS[variant], size)


def test_ranks_compile_into_one_graph() -> None:
    check({"num_layers": 1, **VARIANTS["sequence_tied"]}, 2, "aot_eager")
