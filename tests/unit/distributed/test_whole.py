"""What ranks saved, put together in one process; with real ranks in tests/distributed/test_other_layout.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from transom import LayoutMap
from transom.distributed.whole import _Whole, has_other_layout


class Turned(nn.Linear):
    def layout_map(self) -> LayoutMap:
        return LayoutMap([])


@pytest.mark.parametrize(("inner", "expected"), [(nn.Linear(2, 2), False), (Turned(2, 2), True)])
def test_module_inside_a_model_may_have_another_layout(inner: nn.Module, expected: bool) -> None:
    assert has_other_layout(nn.Sequential(nn.Linear(2, 2), inner)) is expected


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_gate_and_up_are_one_and_other_names_that_end_alike_are_not(tmp_path: Path) -> None:
    gate, up = torch.ones(2, 3), torch.zeros(2, 3)
    stored = {
        "fc1.weight_w": gate,
        "fc1.weight_v": up,
        "fc1.weight_w.exp_avg": gate + 1,
        "fc1.weight_v.exp_avg": up + 1,
        "fc1.weight.step": torch.ones(1),
        "proj_w.weight": torch.ones(2),
        "proj_v.weight": torch.ones(2),
        "alone_w": torch.ones(2),
    }
    save(stored, storage_writer=HuggingFaceStorageWriter(str(tmp_path), save_distributed=True), no_dist=True)
    whole = _Whole(tmp_path)
    assert whole.names() == {
        "fc1.weight",
        "fc1.weight.exp_avg",
        "fc1.weight.step",
        "proj_w.weight",
        "proj_v.weight",
        "alone_w",
    }
    found = whole.read(whole.names())
    assert torch.equal(found["fc1.weight"], torch.cat([gate, up]))
    assert torch.equal(found["fc1.weight.exp_avg"], torch.cat([gate, up]) + 1)
    assert found["fc1.weight.step"].shape == ()
