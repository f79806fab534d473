from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transom.errors import ParallelError
from transom.transformer.sharding import (
    ShardedModule,
    ShardedTensor,
    replica_of,
    replicated,
    sharded,
    sharded_state_of,
)


class Part(ShardedModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 3))
        self.register_buffer("kept", torch.rand(4))
        self.register_buffer("derived", torch.rand(4), persistent=False)
        self.absent = None


class Tree(ShardedModule):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Part(), Part()])
        self.plain = nn.Linear(3, 2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sharded_says_where_each_part_lies(axis, ranks):
    whole = torch.arange(64.0).view(8, 8)
    found = torch.full_like(whole, float("nan"))
    for rank, part in enumerate(whole.chunk(ranks, axis)):
        shard = sharded("w", part, axis, rank, ranks)
        assert shard.global_shape == (8, 8)
        assert shard.axis_fragmentations == ((ranks, 1) if axis == 0 else (1, ranks))
        assert (shard.dtype, shard.local_shape, shard.flattened) == (torch.float32, tuple(part.shape), False)
        found[shard.index] = shard.data
    assert torch.equal(found, whole)


def test_sharded_says_where_each_part_lies_after_prepended_axes():
    whole = torch.rand(3, 5, 4)
    shard = sharded("w", whole[2, :, 2:], 1, 1, 2, ((0, 2, 3),))
    assert (shard.global_shape, shard.global_offset, shard.axis_fragmentations) == ((3, 5, 4), (2, 0, 2), (3, 1, 2))
    assert shard.prepended == 1
    assert torch.equal(whole[shard.index], shard.data)


def test_replicated_is_the_whole():
    shard = replicated("w", torch.rand(2, 3), prepend_offsets=((0, 1, 2), (1, 0, 4)))
    assert (shard.global_shape, shard.global_offset) == ((2, 4, 2, 3), (1, 0, 0, 0))
    assert replicated("scalar", torch.tensor(1.0)).global_shape == ()


def test_main_replica_is_the_one_of_zeros():
    assert replicated("w", torch.ones(1), replica_id=(0, 0)).is_main_replica
    assert not replicated("w", torch.ones(1), replica_id=(0, 2)).is_main_replica


@pytest.mark.parametrize(
    ("metadata", "known", "expected"),
    [
        (None, None, (0, 0)),
        ({"tensor_parallel_rank": 2}, None, (2, 0)),
        ({"tensor_parallel_rank": 2, "data_parallel_rank": 1}, 0, (0, 1)),
        ({"data_parallel_rank": 1}, 3, (3, 1)),
    ],
)
def test_replica_is_counted_over_both_kinds_of_ranks(metadata, known, expected):
    assert replica_of(metadata, tensor_parallel_rank=known) == expected


@pytest.mark.parametrize(
    ("make", "text", "data"),
    [
        (
            lambda: sharded("w", torch.ones(2), 1, 0, 2),
            "w: a tensor of 1 axes cannot be split along axis 1.",
            {"key": "w", "axis": 1},
        ),
        (
            lambda: sharded("w", torch.ones(2), 0, 2, 2),
            "w: there is no rank 2 of 2.",
            {"key": "w", "rank": 2, "ranks": 2},
        ),
        (
            lambda: replicated("w", torch.ones(2), prepend_offsets=((1, 0, 2),)),
            "w: offsets ((1, 0, 2),) are not those of the whole's first 1 axes in order.",
            {"key": "w"},
        ),
        (
            lambda: ShardedTensor("w", torch.ones(2), torch.float32, (2,), (4,), (3,), (2,)),
            "w: a shard (2,) at (3,) does not lie in (4,).",
            {"key": "w"},
        ),
        (
            lambda: ShardedTensor("w", torch.ones(2), torch.float32, (2,), (4,), (-1,), (2,)),
            "w: a shard (2,) at (-1,) does not lie in (4,).",
            {"key": "w"},
        ),
        (
            lambda: ShardedTensor("w", torch.ones(2), torch.float32, (2,), (4,), (0, 0), (2,)),
            "w: a shard (2,) at (0, 0) does not lie in (4,).",
            {"key": "w"},
        ),
    ],
    ids=["axis", "rank", "prepended", "end", "start", "axes"],
)
def test_shard_that_cannot_be_is_refused(make, text, data):
    with pytest.raises(ParallelError, match=re.escape(text)) as caught:
        make()
    assert caught.value.data == data


def test_module_describes_what_its_state_dict_holds():
    tree = Tree()
    state = tree.sharded_state_dict("model.", ((0, 1, 2),), {"data_parallel_rank": 1})
    expected = tree.state_dict(prefix="model.")
    assert state.keys() == expected.keys()
    for name, shard in state.items():
        assert (shard.key, shard.replica_id) == (name, (0, 1))
        assert shard.global_shape == (2, *expected[name].shape)
        assert torch.equal(shard.data, expected[name])
    assert state["model.parts.1.weight"].data is tree.parts[1].weight  # an optimizer's state finds its shard by it


def test_plain_module_asks_the_children_that_can_tell():
    class Telling(nn.Linear):
        def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
            assert (sharded_offsets, metadata) == (((0, 0, 2),), {"x": 1})
            return {f"{prefix}weight": sharded("told", self.weight, 0, 1, 4, sharded_offsets)}

    root = nn.Sequential(nn.Linear(2, 2, bias=False), Telling(2, 2))
    state = sharded_state_of(root, "m.", ((0, 0, 2),), {"x": 1})
    assert {name: (shard.key, shard.global_shape) for name, shard in state.items()} == {
        "m.0.weight": ("m.0.weight", (2, 2, 2)),
        "m.1.weight": ("told", (2, 8, 2)),
    }


def test_tied_tensors_have_one_owner():
    tree = Tree()
    tree.parts[1].weight = tree.parts[0].weight
    state = tree.sharded_state_dict()
    first, second = state["parts.0.weight"], state["parts.1.weight"]
    assert (first.key, first.is_main_replica) == ("parts.0.weight", True)
    assert (second.key, second.is_main_replica) == ("parts.0.weight", False)
    keys = [shard.key for shard in state.values() if shard.is_main_replica]
    assert len(keys) == len(set(keys)) == len(state) - 1
