from __future__ import annotations

import re

import pytest
import torch
from transom.errors import ParallelError
from transom.transformer.sharding import sharded
from transom.transformer.swiglu_sharding import apply_swiglu_sharded_factory


def _swiglu(config):
    """A whole [gate; up] weight and bias, and a tensor of an optimizer's state for each."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = 2 * config.ffn_hidden_size, config.hidden_size
    weight, bias = torch.rand(rows, columns, generator=generator), torch.rand(rows, generator=generator)
    return {"weight": weight, "bias": bias, "weight.exp_avg": weight.square(), "bias.exp_avg": bias.square()}


def _rank_of(whole, rank, ranks):
    """By the definition: the r-th part of gate on top of the r-th part of up."""
    gate, up = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    size = len(gate) // ranks
    return torch.cat([gate[rank * size : (rank + 1) * size], up[rank * size : (rank + 1) * size]])


def _factory(key, local, rank, ranks, singleton, offsets=()):
    return apply_swiglu_sharded_factory(sharded(key, local, 0, rank, ranks, offsets), offsets, singleton)


@pytest.mark.parametrize("singleton", [False, True], ids=["one key", "two keys"])
@pytest.mark.parametrize("other", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_swiglu_factory_saved_on_some_ranks_loads_on_any_other(make_config, ranks, other, singleton):
    for key, whole in _swiglu(make_config(hidden_size=8, ffn_hidden_size=12)).items():
        saved = {}
        for rank in range(ranks):
            for shard in _factory(key, _rank_of(whole, rank, ranks), rank, ranks, singleton).build():
                saved.setdefault(shard.key, torch.full(shard.global_shape, float("nan")))[shard.index] = shard.data
        if singleton:
            assert saved.keys() == {f"{key}_w", f"{key}_v"}
            assert torch.equal(torch.cat([saved[f"{key}_w"], saved[f"{key}_v"]]), whole)
        else:
            assert saved.keys() == {key}
            assert torch.equal(saved[key], whole)
        for rank in range(other):
            expected = _rank_of(whole, rank, other)
            factory = _factory(key, torch.empty_like(expected), rank, other, singleton)
            loaded = factory.merge_fn([saved[shard.key][shard.index] for shard in factory.build()])
            assert torch.equal(loaded, expected)


def test_swiglu_factory_gives_the_published_offsets():
    fused = torch.arange(24.0).view(6, 4)
    offsets = ((0, 1, 5),)
    gate, up = _factory("k", fused, 1, 2, False, offsets).build()
    assert (gate.key, gate.global_shape, gate.global_offset) == ("k", (5, 12, 4), (1, 3, 0))
    assert (up.key, up.global_shape, up.global_offset) == ("k", (5, 12, 4), (1, 9, 0))
    assert gate.axis_fragmentations == up.axis_fragmentations == (5, 4, 1)
    gate, up = _factory("k", fused, 1, 2, True, offsets).build()
    assert (gate.key, gate.global_shape, gate.global_offset) == ("k_w", (5, 6, 4), (1, 3, 0))
    assert (up.key, up.global_shape, up.global_offset) == ("k_v", (5, 6, 4), (1, 3, 0))
    assert gate.axis_fragmentations == up.axis_fragmentations == (5, 2, 1)


def test_swiglu_factory_builds_an_optimizers_state_like_the_weight():
    weight = torch.rand(4, 3)
    factory = _factory("w", weight, 0, 2, False)
    state = factory.build_fn("exp_avg.w", weight.square(), (0, 1))
    assert [shard.key for shard in state] == ["exp_avg.w"] * 2
    assert [shard.replica_id for shard in state] == [(0, 1)] * 2
    assert [shard.index for shard in state] == [shard.index for shard in factory.build()]
    assert torch.equal(factory.merge_fn([shard.data for shard in state]), weight.square())


def test_swiglu_factory_refuses_an_odd_part():
    text = "w: gate and up of 6 rows each cannot be split over 4 ranks."
    with pytest.raises(ParallelError, match=re.escape(text)) as caught:  # 2 · 6 rows would split, 6 do not
        _factory("w", torch.rand(3, 2), 0, 4, False)
    assert caught.value.data == {"key": "w", "size": 12, "ranks": 4}
    assert "a multiple of 4" in caught.value.hint


def test_swiglu_factory_refuses_a_tensor_of_another_shape():
    factory = _factory("w", torch.rand(4, 2), 0, 2, False)
    text = "m: a tensor (4,) is not shaped like the fused gate and up (4, 2)."
    with pytest.raises(ParallelError, match=re.escape(text)) as caught:
        factory.build_fn("m", torch.rand(4), (0,))
    assert caught.value.data == {"key": "m"}
