"""The static cache: what it holds, what it refuses, and that its layers never get out of step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom import BuildContext
from transom.errors import CacheError
from transom.slots.kv_cache import KVCacheRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.kv_cache import StaticKVCache, build_static_kv_cache


def make(**sizes: Any) -> StaticKVCache:
    usual = {"num_layers": 2, "batch_size": 3, "capacity": 6, "num_query_groups": 2, "head_size": 4}
    return StaticKVCache(**(usual | sizes))


def tokens(b: int, s: int, d: int = 4) -> Tensor:
    return torch.randn(b, s, 2, d)


def test_cache_returns_what_was_written_when_steps_follow_each_other() -> None:
    cache, written = make(), [tokens(3, s) for s in (3, 1, 2)]
    start = 0
    for new in written:
        positions = torch.arange(start, start + new.shape[1])
        step = cache.begin(positions, 3)
        for number in range(2):
            keys, values, lengths = step.layer(number).update(new + number, -new, positions)
            held = torch.cat(written, dim=1)[:, : positions[-1] + 1]
            assert torch.equal(keys, held + number)
            assert torch.equal(values, -held)
            assert lengths.tolist() == [int(positions[-1]) + 1] * 3
        step.commit()
        start += new.shape[1]
    assert cache.lengths.tolist() == [6, 6, 6]


def test_cache_keeps_values_of_another_size_when_asked() -> None:
    cache = make(value_head_size=7, dtype=torch.bfloat16)
    key, value = tokens(3, 2), tokens(3, 2, 7)
    keys, values, _ = cache.layer(1).update(key, value, torch.arange(2))
    assert cache.entries[1].value.data.dtype is torch.bfloat16
    assert keys.dtype is values.dtype is torch.float32
    assert torch.equal(values, value.bfloat16().float())


def test_rows_write_where_their_positions_say_when_given_per_row() -> None:
    cache = make()
    first = tokens(3, 4)
    padded = torch.tensor([[0, 1, 2, 3], [-1, 0, 1, 2], [-1, -1, -1, 0]])  # left padding
    keys, _, lengths = cache.layer(0).update(first, first, padded)
    assert lengths.tolist() == cache.lengths.tolist() == [4, 3, 1]
    assert torch.equal(keys[0], first[0])
    assert torch.equal(keys[1, :3], first[1, 1:])
    assert torch.equal(keys[2, :1], first[2, 3:])
    assert not keys[2, 1:].any(), "padding is written nowhere"
    new = tokens(3, 1)
    keys, _, lengths = cache.layer(0).update(new, new, torch.tensor([[4], [3], [1]]))
    assert lengths.tolist() == [5, 4, 2]
    for row, slot in enumerate((4, 3, 1)):
        assert torch.equal(keys[row, slot], new[row, 0])
    assert torch.equal(keys[1, :3], first[1, 1:])


def test_slots_follow_positions_when_they_are_shuffled() -> None:
    cache, key = make(), tokens(2, 3)
    keys, _, lengths = cache.layer(0).update(key, key, torch.tensor([2, 0, 1]))
    assert torch.equal(keys, key[:, [1, 2, 0]])
    assert lengths.tolist() == [3, 3]


def test_row_stays_as_it_is_when_all_of_it_is_padding() -> None:
    cache = make(batch_size=2)
    old, new = tokens(2, 2), tokens(2, 1)
    cache.layer(0).update(old, old, torch.arange(2))
    keys, _, lengths = cache.layer(0).update(new, new, torch.tensor([[2], [-1]]))
    assert lengths.tolist() == [3, 2]
    assert torch.equal(keys[1, :2], old[1])


def test_smaller_batch_uses_the_first_rows_when_it_comes() -> None:
    cache = make()
    key = tokens(2, 3)
    keys, values, lengths = cache.layer(0).update(key, key, torch.arange(3))
    assert keys.shape == values.shape == (2, 3, 2, 4)
    assert lengths.shape == (2,)
    assert cache.lengths.tolist() == [3, 3, 0]


def test_prompt_run_twice_overwrites_when_positions_start_again() -> None:
    cache, first, second = make(), tokens(3, 4), tokens(3, 2)
    cache.layer(0).update(first, first, torch.arange(4))
    keys, _, lengths = cache.layer(0).update(second, second, torch.arange(2))
    assert torch.equal(keys, second)
    assert lengths.tolist() == cache.lengths.tolist() == [2, 2, 2]


def test_rewind_forgets_later_positions_and_reset_all() -> None:
    cache, key = make(), tokens(3, 4)
    cache.layer(0).update(key, key, torch.arange(4))
    cache.rewind(2)
    assert cache.lengths.tolist() == [2, 2, 2]
    cache.rewind(3)
    assert cache.lengths.tolist() == [2, 2, 2]
    cache.reset()
    assert cache.lengths.tolist() == [0, 0, 0]
    assert not cache.entries[0].key.data.any()


def test_lengths_stay_when_a_step_fails_between_layers() -> None:
    cache, key = make(), tokens(3, 2)
    done = cache.begin(torch.arange(2), 3)
    for number in range(2):
        done.layer(number).update(key, key, done.positions)
    done.commit()
    failed = cache.begin(torch.tensor([2]), 3)
    failed.layer(0).update(tokens(3, 1), tokens(3, 1), failed.positions)  # and layer 1 raises
    assert cache.lengths.tolist() == [2, 2, 2]
    rewinding = cache.begin(torch.tensor([1]), 3)
    rewinding.layer(0).update(tokens(3, 1), tokens(3, 1), rewinding.positions)
    assert cache.lengths.tolist() == [1, 1, 1], "position 1 is no longer the same in all layers"


def test_cache_gives_no_gradient_when_keys_need_one() -> None:
    cache = make()
    key = tokens(3, 2).requires_grad_()
    keys, _, _ = cache.layer(0).update(key, key, torch.arange(2))
    assert not keys.requires_grad
    assert not cache.entries[0].key.data.requires_grad


def test_cache_serves_outside_when_made_in_inference_mode() -> None:
    with torch.inference_mode():
        cache = make()
    cache.layer(0).update(tokens(3, 2), tokens(3, 2), torch.arange(2))
    with torch.inference_mode():
        cache.layer(0).update(tokens(3, 1), tokens(3, 1), torch.tensor([2]))
    assert cache.lengths.tolist() == [3, 3, 3]


def test_cache_follows_its_model_when_moved_and_is_not_saved() -> None:
    cache = make()
    assert not cache.state_dict()
    assert cache.to("meta").entries[0].key.data.is_meta


@pytest.mark.parametrize(
    ("positions", "aligned", "extent"),
    [
        (torch.arange(4), True, 4),
        (torch.arange(4).expand(3, 4), True, 4),
        (torch.tensor([1, 0, 2]), False, 3),
        (torch.tensor([[0, 1], [0, 1], [-1, 0]]), False, 2),
    ],
    ids=["[s]", "[b, s]", "shuffled", "ragged"],
)
def test_step_knows_plain_causality_when_rows_are_aligned(positions: Tensor, aligned: bool, extent: int) -> None:
    step = make().begin(positions, 3)
    mask = AttentionMask(causal=True)
    assert (step.aligned, step.extent) == (aligned, extent)
    assert step.mask(mask).is_plain_causal() is aligned
    assert step.mask(mask) is step.mask(mask)


def test_step_shows_all_that_is_held_when_there_is_no_mask() -> None:
    cache, old = make(batch_size=2), tokens(2, 3)
    cache.layer(0).update(old, old, torch.tensor([[0, 1, 2], [-1, 0, 1]]))
    step = cache.begin(torch.tensor([[3], [2]]), 2)
    visible = step.mask(None).as_bool(1, step.extent, device=torch.device("cpu"))
    assert visible[:, 0, 0].int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def refused(text: str, **attributes: Any) -> Any:
    return pytest.raises(CacheError, match=text, check=lambda e: attributes.items() <= e.data.items())


def test_cache_refuses_before_writing_when_it_is_full() -> None:
    cache, key = make(), tokens(3, 5)
    cache.layer(0).update(key, key, torch.arange(5))
    before = cache.entries[0].key.data.clone()
    with refused("7 positions are asked for and the cache holds 6.", capacity=6, asked=7):
        cache.layer(0).update(tokens(3, 2), tokens(3, 2), torch.arange(5, 7))
    with refused("7 positions are asked for and the cache holds 6.", capacity=6, asked=7):
        cache.begin(torch.arange(7), 3)
    assert torch.equal(cache.entries[0].key.data, before)
    assert cache.lengths.tolist() == [5, 5, 5]


def test_cache_refuses_when_the_batch_is_larger() -> None:
    with refused("4 rows are asked for and the cache holds 3.", capacity=3, asked=4):
        make().begin(torch.arange(2), 4)


def test_cache_refuses_when_positions_leave_a_gap() -> None:
    cache, key = make(), tokens(3, 2)
    cache.layer(0).update(key, key, torch.arange(2))
    with refused("row 0 goes on at position 3, and the cache holds 2 positions of it.", asked=3):
        cache.begin(torch.tensor([3]), 3)
    with refused("row 2 goes on at position 4, and the cache holds 2 positions of it.", asked=4):
        cache.begin(torch.tensor([[2], [2], [4]]), 3)


def test_cache_refuses_when_positions_are_missing_or_malformed() -> None:
    with refused("a cache needs the positions of the tokens, and none are given."):
        make().begin(None, 2)
    with refused(r"positions must have shape \[s\] or \[b, s\] with b = 2, not \[3, 4\]."):
        make().begin(torch.zeros(3, 4, dtype=torch.long), 2)
    with refused(r"with b = 2, not \[\]."):
        make().begin(torch.tensor(3), 2)


@pytest.mark.parametrize("name", ["num_layers", "batch_size", "capacity"])
def test_cache_refuses_to_be_made_when_a_size_is_below_one(name: str) -> None:
    with refused(f"{name} is 0; a cache needs at least 1."):
        make(**{name: 0})


def test_check_reads_numbers_alone_when_called_beforehand() -> None:
    make().check(3, 6)
    with refused("8 positions are asked for", capacity=6, asked=8):
        make().check(3, 8)


def test_rows_go_on_from_others_when_they_are_reordered() -> None:
    cache, key = make(), tokens(3, 3)
    cache.layer(1).update(key, key, torch.tensor([[0, 1, 2], [-1, 0, 1], [-1, -1, 0]]))
    cache.reorder(torch.tensor([2, 0]))
    assert cache.lengths.tolist() == [1, 3, 1]
    new = tokens(2, 1)
    keys, _, _ = cache.layer(1).update(new, new, torch.tensor([[1], [3]]))
    assert torch.equal(keys[0, :2], torch.cat([key[2, 2:], new[0]]))
    assert torch.equal(keys[1], torch.cat([key[0], new[1]]))


def test_reserve_refuses_what_would_not_fit() -> None:
    make().reserve(3, 6)
    with refused("7 positions are asked for and the cache holds 6.", capacity=6, asked=7):
        make().reserve(3, 7)


def test_builder_makes_what_the_request_asks_for() -> None:
    request = KVCacheRequest(
        context=BuildContext(mode="infer", dtype="bfloat16"),
        windows=(None, (3, 0)),
        num_query_groups=2,
        head_size=4,
        value_head_size=6,
    )
    config: Any = None
    cache = build_static_kv_cache(config, request=request, batch_size=3, capacity=5)
    assert (cache.num_layers, cache.batch_size, cache.capacity) == (2, 3, 5)
    assert cache.entries[1].value.data.shape == (3, 5 + 1, 2, 6)
    assert cache.entries[0].key.data.dtype is torch.bfloat16
    wide = build_static_kv_cache(config, request=request, batch_size=3, capacity=5, dtype=torch.float32)
    assert wide.entries[0].key.data.dtype is torch.float32
