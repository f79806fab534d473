"""The paged cache: blocks that rows get, share nothing of, and give back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom import BuildContext
from transom.errors import CacheError
from transom.slots.kv_cache import KVCacheRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.kv_cache import StaticKVCache
from transom.transformer.paged_kv_cache import PagedKVCache, PagedOptions, build_paged_kv_cache

SIZES = {"num_layers": 2, "batch_size": 3, "capacity": 10, "num_query_groups": 2, "head_size": 4}


def make(block_size: int = 4, num_blocks: int | None = None, **sizes: Any) -> PagedKVCache:
    return PagedKVCache(**(SIZES | sizes), options=PagedOptions(block_size, num_blocks))


def run(cache: Any, positions: Tensor, new: Tensor) -> list[Tensor]:
    """Run a step of all layers; give what they see."""
    step = cache.begin(positions, len(new))
    seen = []
    for number in range(cache.num_layers):
        keys, values, lengths = step.layer(number).update(new + number, -new, positions)
        seen += [keys, values, lengths]
    step.commit()
    return seen


STEPS = {
    "shared positions": [torch.arange(5), torch.tensor([5]), torch.arange(6, 10)],
    "rows": [torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1], [-1] * 4 + [0]]), torch.tensor([[5], [2], [1]])],
    "a row that has ended": [torch.arange(4), torch.tensor([[4], [-1], [4]]), torch.tensor([[5], [-1], [-1]])],
    "again": [torch.arange(7), torch.arange(2), torch.tensor([2])],
    "fewer rows": [torch.arange(3).expand(2, 3), torch.tensor([[3], [3]])],
}


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_layers_see_what_a_static_cache_shows(steps: list[Tensor], block_size: int) -> None:
    paged, static = make(block_size), StaticKVCache(**SIZES)
    for positions in steps:
        b = positions.shape[0] if positions.dim() == 2 else 3
        new = torch.randn(b, positions.shape[-1], 2, 4)
        for ours, theirs in zip(run(paged, positions, new), run(static, positions, new), strict=True):
            assert ours.shape == theirs.shape
            held = (
                (torch.arange(ours.shape[1]) < static.lengths[:b, None])[..., None, None] if ours.dim() == 4 else True
            )
            assert torch.equal(ours * held, theirs * held)
    assert paged.lengths.tolist() == static.lengths.tolist()


def test_masks_are_those_of_a_static_cache() -> None:
    step = make().begin(torch.tensor([[0, 1], [-1, 0]]), 2)
    visible = step.mask(AttentionMask(causal=True)).as_bool(2, step.extent, device=torch.device("cpu"))
    assert visible is not None
    assert visible[:, 0].int().tolist() == [[[1, 0], [1, 1]], [[0, 0], [1, 0]]]


def test_rows_get_blocks_as_they_grow() -> None:
    cache = make()
    assert cache.blocks.free == list(range(9, 0, -1))
    run(cache, torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1], [-1] * 5]), torch.ones(3, 5, 2, 4))
    assert [len(owned) for owned in cache.blocks.owned] == [2, 1, 0]
    assert cache.blocks.table.tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0]]
    run(cache, torch.tensor([[5], [2], [0]]), torch.ones(3, 1, 2, 4))
    assert [len(owned) for owned in cache.blocks.owned] == [2, 1, 1]


def test_blocks_come_back_when_rows_forget() -> None:
    cache = make()
    run(cache, torch.arange(9), torch.ones(3, 9, 2, 4))
    assert not cache.blocks.free
    cache.rewind(4)
    assert (len(cache.blocks.free), cache.lengths.tolist()) == (6, [4, 4, 4])
    assert cache.blocks.table[:, 1:].count_nonzero() == 0
    cache.reset()
    assert sorted(cache.blocks.free) == list(range(1, 10))
    assert cache.blocks.table.count_nonzero() == 0
    run(cache, torch.arange(9), torch.ones(3, 9, 2, 4))


def test_a_long_row_takes_what_short_rows_leave() -> None:
    cache = make(num_blocks=4)
    run(cache, torch.tensor([list(range(8)), [-1] * 7 + [0]]), torch.ones(2, 8, 2, 4))
    assert [len(owned) for owned in cache.blocks.owned] == [2, 1, 0]


def test_a_pool_without_blocks_refuses_before_anything_is_written() -> None:
    cache = make(num_blocks=4)
    run(cache, torch.arange(4), torch.ones(3, 4, 2, 4))
    before = cache.entries[0].key.clone()
    with pytest.raises(CacheError, match="3 more blocks of 4 positions are needed and 1 of 4 are free") as caught:
        cache.begin(torch.tensor([4]), 3)
    assert (caught.value.capacity, caught.value.asked) == (4, 6)
    assert "options.kv_cache.num_blocks" in caught.value.hint
    assert cache.lengths.tolist() == [4, 4, 4]
    assert torch.equal(cache.entries[0].key, before)
    assert cache.blocks.free == [4]
    run(cache, torch.tensor([[4], [-1], [-1]]), torch.ones(3, 1, 2, 4))


def test_reserve_gives_blocks_beforehand() -> None:
    cache = make(num_blocks=6)
    cache.reserve(3, 8)
    assert [len(owned) for owned in cache.blocks.owned] == [2, 2, 2]
    assert cache.lengths.tolist() == [0, 0, 0]
    with pytest.raises(CacheError, match="1 more blocks"):
        cache.reserve(1, 9)
    with pytest.raises(CacheError, match="11 positions are asked for and the cache holds 10"):
        cache.reserve(1, 11)


def test_a_failed_step_leaves_every_layer_at_the_same_length() -> None:
    cache, static, first = make(), StaticKVCache(**SIZES), torch.randn(3, 5, 2, 4)
    run(cache, torch.arange(5), first)
    run(static, torch.arange(5), first)
    failed = cache.begin(torch.arange(5, 9), 3)
    failed.layer(0).update(torch.randn(3, 4, 2, 4), torch.randn(3, 4, 2, 4), failed.positions)  # and layer 1 raises
    assert cache.lengths.tolist() == [5, 5, 5]
    new = torch.randn(3, 1, 2, 4)
    for ours, theirs in zip(run(cache, torch.tensor([5]), new), run(static, torch.tensor([5]), new), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [[1, 1, 0], [2, 0, 1], [0, 0]])
def test_rows_go_on_from_others_in_blocks_of_their_own(rows: list[int]) -> None:
    paged, static = make(), StaticKVCache(**SIZES)
    positions = torch.tensor([[0, 1, 2, 3, 4], [-1, -1, 0, 1, 2], [-1] * 5])
    new, after = torch.randn(3, 5, 2, 4), torch.randn(3, 1, 2, 4)
    for cache in (paged, static):
        run(cache, positions, new)
        cache.reorder(torch.tensor(rows))
    owned = [block for blocks in paged.blocks.owned for block in blocks]
    assert len(set(owned)) == len(owned), "no block belongs to two rows"
    assert paged.lengths.tolist() == static.lengths.tolist()
    following = static.lengths[:, None].clone()
    for ours, theirs in zip(run(paged, following, after), run(static, following, after), strict=True):
        held = (torch.arange(ours.shape[1]) < static.lengths[:, None])[..., None, None] if ours.dim() == 4 else True
        assert torch.equal(ours * held, theirs * held)


def test_reordering_without_blocks_is_refused_before_anything_changes() -> None:
    cache = make(num_blocks=3)
    run(cache, torch.tensor([list(range(8)), [-1] * 7 + [0]]), torch.ones(2, 8, 2, 4))
    with pytest.raises(CacheError, match="1 more blocks"):
        cache.reorder(torch.tensor([0, 0]))
    assert cache.lengths.tolist() == [8, 1, 0]


def test_the_builder_takes_options() -> None:
    request = KVCacheRequest(
        context=BuildContext(mode="infer", dtype="bfloat16"),
        windows=(None,),
        num_query_groups=2,
        head_size=4,
        value_head_size=6,
    )
    config: Any = None
    sizes: dict[str, Any] = {"request": request, "batch_size": 2, "capacity": 33}
    plain = build_paged_kv_cache(config, **sizes)
    assert plain.entries[0].key.shape == (2 * 3 + 1, 16, 2, 4)
    assert plain.entries[0].value.dtype is torch.bfloat16
    small = build_paged_kv_cache(config, **sizes, options=PagedOptions(block_size=8, num_blocks=5))
    assert small.entries[0].value.shape == (6, 8, 2, 6)


@pytest.mark.parametrize(("name", "options"), [("block_size", (0, None)), ("num_blocks", (4, 0))])
def test_sizes_below_one_are_refused(name: str, options: tuple[int, int | None]) -> None:
    with pytest.raises(CacheError, match=f"{name} is 0; a cache needs at least 1.") as caught:
        make(*options)
    assert caught.value.asked_by == f"PagedKVCache.{name}"


def test_pages_say_where_all_lies_and_gather_what_update_returns():
    sizes = {"num_layers": 1, "batch_size": 2, "capacity": 8, "num_query_groups": 2, "head_size": 4}
    caches = [PagedKVCache(**sizes, value_head_size=6, options=PagedOptions(block_size=3)) for _ in range(2)]
    for positions in (torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]]), torch.tensor([[4], [2]])):
        new = torch.randn(2, positions.shape[1], 2, 4), torch.randn(2, positions.shape[1], 2, 6)
        key, value, lengths = caches[0].layer(0).update(*new, positions)
        pages = caches[1].layer(0).update_pages(*new, positions)
        assert pages.key.shape[1:] == (3, 2, 4)
        assert torch.equal(pages.lengths, lengths)
        assert pages.extent == key.shape[1]
        assert all(torch.equal(*pair) for pair in zip(pages.gathered(), (key, value), strict=True))


def test_other_caches_keep_no_pages_and_write_nothing_when_asked():
    cache = StaticKVCache(num_layers=1, batch_size=1, capacity=4, num_query_groups=1, head_size=2)
    x = torch.ones(1, 1, 1, 2)
    assert cache.layer(0).update_pages(x, x, torch.tensor([0])) is None
    assert cache.lengths.tolist() == [0]
