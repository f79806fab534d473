"""Decoders split over processes compute what one process does: logits, losses and every gradient, in float64."""

from __future__ import annotations

from typing import Any

import model_jobs
import pytest
import torch
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

TIED = {"share_embeddings_and_output_weights": True}
VARIANTS = {
    "plain": {},
    "tied": TIED,
    "sequence": {"sequence_parallel": True},
    "sequence_tied": {"sequence_parallel": True, **TIED},
    "query_key_norms": {"qk_layernorm": True, "sequence_parallel": True},
    "learned_positions": {"position_embedding_type": "learned_absolute", "sequence_parallel": True},
    "z_loss_and_caps": {"z_loss": 0.01, "final_logit_softcapping": 5.0},
    "alibi": {"position_embedding_type": "alibi"},
    "output_gate": {"attention_output_gate": True},
    "recomputed": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def check(changes: dict[str, Any], size: int, backend: str | None = None) -> None:
    alone = {name: value for name, value in changes.items() if name != "sequence_parallel"}
    expected = model_jobs.run_model(model_jobs.spec(**alone), None)
    for rank, found in enumerate(ranks(size).run(model_jobs.on_ranks, changes, backend)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            tolerance = 1e-5 if name == "logits" else 1e-12  # logits come in float32
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error <= tolerance, f"{name} on rank {rank}: {error}"


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_compute_what_one_process_does(variant: str, size: int) -> None:
    """On 4 ranks, each of the 2 key/value heads is on two."""
    check(VARIANTS[variant], size)


def test_ranks_compile_into_one_graph() -> None:
    check(VARIANTS["sequence_tied"], 2, "aot_eager")


@pytest.mark.parametrize("recompute", [{}, {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}])
def test_ranks_drop_alike_in_the_residual_stream_and_apart_in_attention(recompute: dict[str, object]) -> None:
    changes = {"attention_dropout": 0.5, "hidden_dropout": 0.5, **recompute}
    for attention, residual in zip(
        *[iter(zip(*ranks(2).run(model_jobs.dropped, changes), strict=True))] * 2, strict=True
    ):
        assert not torch.equal(*attention)
        assert torch.equal(*residual)


def test_ranks_that_share_tokens_drop_attention_weights_in_one_graph() -> None:
    for plain, compiled in ranks(2).run(model_jobs.dropped_in_one_graph):
        torch.testing.assert_close(compiled, plain)
