"""Decoders whose ranks share every sequence compute what one process does: logits, losses, gradients, in float64."""

from __future__ import annotations

from typing import Any

import context_jobs
import model_jobs
import pytest
import transom
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "torch_kernels": {"use": {"core_attention": "torch_dot_product"}},
    "window": {"window_size": [3, 0], "window_attn_skip_freq": 2},
    "packed": {"masks": ["packed"]},
    "padded": {"masks": ["padding"]},
    "learned_positions": {"position_embedding_type": "learned_absolute"},
    "alibi": {"position_embedding_type": "alibi"},
    "sinks_and_caps": {"softmax_type": "learnable", "attn_logit_softcapping": 3.0},
    "recomputed": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    "core_recomputed": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
}


def check(changes: dict[str, Any], size: int, tp: int = 1, backend: str | None = None) -> None:
    alone = {name: value for name, value in changes.items() if name not in ("sequence_parallel", "use")}
    expected = context_jobs.run_whole(alone)
    for rank, found in enumerate(ranks(size).run(context_jobs.on_ranks, changes, tp, backend)):
        for name, value in expected.items():
            tolerance = 1e-5 if name == "logits" else 1e-12  # logits come in float32
            seen = found[name.replace("core_attention.", "core_attention.core.")]
            error = (seen - value).abs().max() / value.abs().max()
            assert error <= tolerance, f"{name} on rank {rank}: {error}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_compute_what_one_process_does(variant: str) -> None:
    check(VARIANTS[variant], 2)


@pytest.mark.parametrize("changes", [{}, {"sequence_parallel": True, "masks": ["packed"]}], ids=["", "sequence"])
def test_shares_compute_what_one_process_does_where_weights_are_split_too(changes: dict[str, Any]) -> None:
    check(changes | {"use": model_jobs.PARALLEL}, 4, tp=2)


def test_shares_over_four_ranks_compute_what_one_process_does() -> None:
    check(VARIANTS["packed"], 4)


def test_shares_compile_into_one_graph() -> None:
    check(VARIANTS["packed"], 2, backend="aot_eager")


def test_states_of_shares_have_the_names_of_one_process() -> None:
    one = transom.build(context_jobs.described({"softmax_type": "learnable"}), seed=0).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in one.items()}
    assert "layers.1.self_attention.core_attention.softmax_offset" in expected
    assert ranks(2).run(context_jobs.state_of) == [expected] * 2
