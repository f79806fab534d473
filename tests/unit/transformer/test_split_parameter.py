"""Parameters of one rank; over several, tests/distributed has position biases and the bias of tied logits."""

from __future__ import annotations

import torch
from transom.transformer.collectives import Ranks
from transom.transformer.split_parameter import described, local_tensor, split_parameter


def test_a_parameter_of_one_process_is_a_plain_one_in_the_same_memory() -> None:
    part = torch.zeros(4)
    parameter = split_parameter(part, 0, None)
    assert parameter.data_ptr() == part.data_ptr()
    assert local_tensor(parameter, Ranks.of(None)) is parameter


def test_description_says_which_part_of_the_whole_a_rank_has() -> None:
    parameter = torch.zeros(3, 2)
    shard = described("bias", parameter, 1, Ranks("", 4, 3), metadata={"data_parallel_rank": 5})
    assert (shard.local_shape, shard.global_shape, shard.global_offset) == ((3, 2), (3, 8), (0, 6))
    assert shard.data is parameter
    assert shard.replica_id == (0, 5)
