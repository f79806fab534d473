"""Ranks that planned different models are told so before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RANK = """
import json, sys
import torch
import transom
from transom.composition import check_ranks
from transom.errors import PlanMismatchError

rank, store, changes = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
plan = transom.plan("tiny-llama", **(changes if rank == 1 else {}))
try:
    check_ranks(plan, torch.distributed.group.WORLD)
    print(json.dumps(None))
except PlanMismatchError as error:
    print(json.dumps([error.what, list(error.failed), list(error.differences)]))
torch.distributed.destroy_process_group()
"""


def run(tmp_path, changes):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), json.dumps(changes)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    return [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]


@pytest.mark.multiprocess
def test_ranks_with_the_same_plan_go_on(tmp_path):
    assert run(tmp_path, {"use": {"layers.0.mlp": "transom/mlp"}}) == [None, None]


@pytest.mark.multiprocess
def test_ranks_with_different_choices_all_raise(tmp_path):
    first, second = run(tmp_path, {"use": {"layers.1.self_attention.core_attention": "dot_product"}})
    place = "layers.1.self_attention.core_attention: "
    theirs, ours = "transom-torch-dot-product/torch_dot_product", "transom/dot_product"
    assert first[0] == "rank 0 and rank 1 of the group planned different models."
    assert first[2] == [f"{place}{ours} was locked, now {theirs}"]
    assert second[2] == [f"{place}{theirs} was locked, now {ours}"]
    assert second[1] == [f"{second[2][0]} (rank 0 first, then this rank)"]
