"""The int8 cache: how coarse it is, and that it is a static cache otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transom import BuildContext
from transom.errors import CacheError
from transom.slots.kv_cache import KVCacheRequest
from transom.transformer.int8_kv_cache import Int8KVCache, build_int8_kv_cache
from transom.transformer.kv_cache import StaticKVCache

SIZES = {"num_layers": 2, "batch_size": 3, "capacity": 8, "num_query_groups": 2, "head_size": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_each_number_comes_back_to_within_half_a_level_of_its_head(scale: float, dtype: torch.dtype) -> None:
    cache = Int8KVCache(**SIZES)
    key = scale * torch.randn(3, 5, 2, 16, dtype=dtype)
    keys, values, lengths = cache.layer(0).update(key, key.flip(-1), torch.arange(5))
    half_a_level = key.abs().amax(dim=-1, keepdim=True) / 127 / 2
    for found, given in ((keys, key), (values, key.flip(-1))):
        assert found.dtype is dtype
        assert ((found - given).abs() <= 1.001 * half_a_level).all()
    assert lengths.tolist() == [5, 5, 5]


def test_numbers_of_a_head_do_not_touch_those_of_another() -> None:
    cache, key = Int8KVCache(**SIZES), torch.ones(3, 2, 2, 16)
    key[:, :, 1] = 1e4
    key[:, 1] *= 1e-3
    keys, _, _ = cache.layer(0).update(key, key, torch.arange(2))
    torch.testing.assert_close(keys, key, rtol=1e-6, atol=0)


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(3, 2, 2, 16)
    keys, values, _ = Int8KVCache(**SIZES).layer(0).update(zeros, zeros, torch.arange(2))
    assert not keys.any()
    assert not values.any()


def test_it_takes_little_more_than_a_byte_a_number() -> None:
    taken = sum(buffer.nbytes for buffer in Int8KVCache(**SIZES).entries.buffers())
    assert taken == sum(buffer.numel() for buffer in StaticKVCache(**SIZES).entries.buffers()) * (16 + 4) // 16


def test_rows_positions_and_orders_are_those_of_a_static_cache() -> None:
    int8, static = Int8KVCache(**SIZES), StaticKVCache(**SIZES)
    for positions, order in (
        (torch.tensor([[0, 1, 2], [-1, 0, 1], [-1, -1, 0]]), [2, 0, 1]),
        (torch.tensor([[1], [3], [2]]), [1, 1, 0]),
        (torch.arange(2), [0, 1, 2]),
    ):
        new = torch.randn(3, positions.shape[-1], 2, 16)
        found, wanted = (cache.layer(1).update(new, new, positions) for cache in (int8, static))
        torch.testing.assert_close(found[0], wanted[0], atol=0.02, rtol=0)
        assert found[2].tolist() == wanted[2].tolist()
        for cache in (int8, static):
            cache.reorder(torch.tensor(order))
    assert int8.lengths.tolist() == static.lengths.tolist()


def test_the_builder_makes_it_in_any_dtype() -> None:
    request = KVCacheRequest(
        context=BuildContext(mode="infer"), windows=(None, None), num_query_groups=2, head_size=4, value_head_size=6
    )
    config: Any = None
    cache = build_int8_kv_cache(config, request=request, batch_size=1, capacity=3, dtype=torch.bfloat16)
    key = torch.randn(1, 2, 2, 4).bfloat16()
    keys, values, _ = cache.layer(0).update(key, torch.randn(1, 2, 2, 6).bfloat16(), torch.arange(2))
    assert keys.dtype is values.dtype is torch.bfloat16
    assert values.shape == (1, 2, 2, 6)
    assert cache.entries[1].key.data.dtype is torch.int8


def test_it_refuses_what_does_not_fit() -> None:
    cache, key = Int8KVCache(**SIZES), torch.ones(3, 9, 2, 16)
    with pytest.raises(CacheError, match="9 positions are asked for and the cache holds 8") as caught:
        cache.layer(0).update(key, key, torch.arange(9))
    assert (caught.value.capacity, caught.value.asked) == (8, 9)
    with pytest.raises(CacheError, match="capacity is 0; a cache needs at least 1") as caught:
        Int8KVCache(**(SIZES | {"capacity": 0}))
    assert caught.value.asked_by == "Int8KVCache.capacity"
