from __future__ import annotations

import pytest
import torch
from transom.errors import MaskError
from transom.models.t5 import t5_extended_attention_mask, t5_position_ids


def test_extended_masks_have_an_axis_for_heads() -> None:
    masks = [torch.rand(2, 3, 3) > 0.5, torch.rand(2, 4, 3) > 0.5]
    for extended, mask in zip(t5_extended_attention_mask(masks), masks, strict=True):
        assert torch.equal(extended[:, 0], mask)
        assert extended.shape == (2, 1, *mask.shape[1:])


def test_a_mask_of_other_axes_is_not_extended() -> None:
    with pytest.raises(MaskError, match=r"mask 1 has shape \[2, 3\]; \[b, s, t\] is needed"):
        t5_extended_attention_mask([torch.ones(2, 3, 3).bool(), torch.ones(2, 3).bool()])


def test_position_ids_count_in_every_row() -> None:
    positions = t5_position_ids(torch.tensor([[5, 5, 5], [7, 8, 9]]))
    assert positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert positions.dtype is torch.int64
