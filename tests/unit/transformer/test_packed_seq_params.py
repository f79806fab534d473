from __future__ import annotations

import torch
from transom.transformer.packed_seq_params import packed_position_ids


def test_positions_begin_anew_with_every_sequence() -> None:
    assert packed_position_ids(torch.tensor([0, 3, 4, 8]), 8).tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_an_empty_sequence_takes_no_position() -> None:
    assert packed_position_ids(torch.tensor([0, 2, 2, 4]), 4).tolist() == [0, 1, 0, 1]
