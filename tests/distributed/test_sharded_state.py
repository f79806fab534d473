"""Modules that were made with a process group say by themselves which part of the whole each rank holds."""

from __future__ import annotations

import pytest
import shard_jobs
import torch
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

SPLIT = {
    # along which axis
    "self_attention.linear_qkv.weight": 0,
    "self_attention.linear_qkv.bias": 0,
    "self_attention.core_attention.softmax_offset": 0,
    "self_attention.linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc1.bias": 0,
    "mlp.linear_fc2.weight": 1,
}


@pytest.mark.parametrize("size", [2, 4])
def test_layer_describes_parts_and_replicas_on_every_rank(size: int) -> None:
    whole = {name: shape for name, (shape, _, _) in shard_jobs.layer(None).items()}
    for rank, described in enumerate(ranks(size).run(shard_jobs.layer)):
        assert described.keys() == whole.keys()
        for name, (shape, offset, replica) in described.items():
            axis = SPLIT.get(name)
            starts = [rank * length // size if i == axis else 0 for i, length in enumerate(shape)]
            assert shape == whole[name], name
            assert list(offset) == starts, name
            assert replica == ((rank, 0) if axis is None else (0, 0)), name


def test_every_tensor_of_a_decoder_has_one_owner_among_the_ranks() -> None:
    for rank, described in enumerate(ranks(2).run(shard_jobs.decoder)):
        assert {is_split for is_split, _ in described.values()} == {True, False}
        for parameter, (is_split, replica) in described.items():
            assert replica[0] == (0 if is_split else rank), parameter


@pytest.mark.parametrize("size", [2, 4])
def test_position_bias_is_that_of_one_process_head_by_head(size: int) -> None:
    whole, _ = shard_jobs.bias(None)
    parts = ranks(size).run(shard_jobs.bias)
    for name, axis in (("bias", 1), ("numbers", 1), ("gradient", 1)):
        assert torch.equal(torch.cat([part[name] for part, _ in parts], dim=axis), whole[name]), name
    for rank, (_, described) in enumerate(parts):
        per_rank = shard_jobs.HEADS // size
        shape = (shard_jobs.BUCKETS, shard_jobs.HEADS)
        assert described == {"relative_attention_bias.weight": (shape, (0, rank * per_rank), (0, 0))}


def test_position_bias_refuses_heads_that_cannot_be_split() -> None:
    for what, data in ranks(2).run(shard_jobs.refused):
        assert what == "position biases of 3 heads cannot be split over 2 tensor-parallel ranks."
        assert data == {"heads": 3, "ranks": 2}
