"""The sliding-window cache: rings that hold a window, and what they have forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom import BuildContext
from transom.errors import CacheError, MaskError
from transom.slots.kv_cache import KVCacheRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.kv_cache import KVCache
from transom.transformer.sliding_kv_cache import SlidingWindowKVCache, build_sliding_window_kv_cache

WINDOW = 3


def make(windows: Any = ((WINDOW - 1, 0), None), **sizes: Any) -> SlidingWindowKVCache:
    usual = {"batch_size": 2, "capacity": 12, "num_query_groups": 1, "head_size": 1}
    return SlidingWindowKVCache(windows, **(usual | sizes))


def numbered(positions: Tensor, b: int = 2) -> Tensor:
    """Keys ``[b, s, 1, 1]`` that tell their position."""
    rows = positions if positions.dim() == 2 else positions.expand(b, -1)
    return rows[..., None, None].float()


def run(cache: KVCache, positions: Tensor, mask: AttentionMask | None = None, number: int = 0) -> list[list[list[int]]]:
    """Run a step of all layers; give the positions that each query of each row sees in one of them."""
    step = cache.begin(positions, 2)
    seen: list[list[list[int]]] = []
    for layer in range(cache.num_layers):
        new = numbered(positions)
        keys, values, _ = step.layer(layer).update(new, -new, positions)
        assert torch.equal(values, -keys)
        if layer == number:
            seen = visible(keys, step.mask(mask or AttentionMask(causal=True), layer), positions.shape[-1])
    step.commit()
    return seen


def visible(keys: Tensor, mask: AttentionMask, s: int) -> list[list[list[int]]]:
    shown = mask.as_bool(s, keys.shape[1], device=keys.device, window=(WINDOW - 1, 0))
    shown = torch.ones(1, 1, s, keys.shape[1], dtype=torch.bool) if shown is None else shown
    shown = shown.expand(2, 1, s, keys.shape[1])[:, 0]
    return [[sorted(int(k) for k in keys[b, shown[b, i], 0, 0]) for i in range(s)] for b in range(2)]


def window_of(position: int) -> list[int]:
    return list(range(max(position - WINDOW + 1, 0), position + 1)) if position >= 0 else []


@pytest.mark.parametrize("number", [0, 1], ids=["ring", "whole"])
@pytest.mark.parametrize(
    "steps",
    [
        [(0, 4), (4, 5), (5, 6), (6, 7), (7, 8)],
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
        [(0, 2), (2, 7), (7, 9), (9, 10), (10, 12)],
    ],
    ids=["prompt, then tokens", "tokens", "pieces"],
)
def test_queries_see_their_window(steps: list[tuple[int, int]], number: int) -> None:
    cache = make()
    for start, end in steps:
        expected = [[window_of(p) for p in range(start, end)]] * 2
        assert run(cache, torch.arange(start, end), number=number) == expected
    assert cache.lengths.tolist() == [steps[-1][1]] * 2


def test_rows_see_their_window_when_they_have_positions_of_their_own() -> None:
    cache = make()
    for rows in (
        [[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1]],
        [[5], [2]],
        [[6, 7], [3, 4]],
        [[-1], [5]],
        [[8], [6]],
    ):
        assert run(cache, torch.tensor(rows)) == [[window_of(p) for p in row] for row in rows]
    assert cache.lengths.tolist() == [9, 7]


def test_a_ring_takes_a_window_and_no_more() -> None:
    cache = make([(2, 0), (4, 0), None, (None, 0), (50, 0)], capacity=20)
    slots = [getattr(entry.key, "data", entry.key).shape[1] for entry in cache.entries]
    assert slots == [3 + 1, 5 + 1, 20 + 1, 20 + 1, 20 + 1]  # one is for padding
    assert [entry.window for entry in cache.entries] == [3, 5, None, None, None]


def test_a_row_goes_back_by_one_position_or_to_its_start() -> None:
    cache = make()
    run(cache, torch.arange(8))
    assert run(cache, torch.tensor([7])) == [[window_of(7)]] * 2
    run(cache, torch.tensor([8]))
    assert run(cache, torch.tensor([8])) == [[window_of(8)]] * 2
    assert run(cache, torch.arange(5)) == [[window_of(p) for p in range(5)]] * 2
    assert cache.lengths.tolist() == [5, 5]
    cache.reset()
    assert run(cache, torch.arange(2)) == [[window_of(0), window_of(1)]] * 2


def test_a_row_goes_back_anywhere_as_long_as_nothing_is_forgotten() -> None:
    cache = make([(5, 0)])
    run(cache, torch.arange(6))
    run(cache, torch.tensor([2]))
    cache.rewind(1)
    assert cache.lengths.tolist() == [1, 1]


@pytest.mark.parametrize(
    "go_back",
    [
        lambda cache: cache.begin(torch.arange(6, 9), 2),
        lambda cache: cache.begin(torch.tensor([[8], [6]]), 2),
        lambda cache: cache.rewind(6),
    ],
    ids=["begin", "one row", "rewind"],
)
def test_going_back_to_what_is_forgotten_is_refused(go_back: Any) -> None:
    cache = make()
    run(cache, torch.arange(8))
    text = r"goes back to position 6, and a layer with a window of 3 tokens has forgotten what is before it"
    with pytest.raises(CacheError, match=text) as caught:
        go_back(cache)
    assert caught.value.asked == 6
    assert "kv_cache=static" in caught.value.hint
    assert cache.lengths.tolist() == [8, 8]


def test_going_back_twice_is_refused_when_nothing_was_written_between() -> None:
    cache = make()
    run(cache, torch.arange(8))
    cache.rewind(7)
    with pytest.raises(CacheError, match="goes back to position 6"):
        cache.rewind(6)


@pytest.mark.parametrize("length", [1, 4], ids=["a token", "several"])
def test_a_failed_step_can_be_run_again(length: int) -> None:
    cache = make()
    run(cache, torch.arange(5))
    positions = torch.arange(5, 5 + length)
    failed = cache.begin(positions, 2)
    failed.layer(0).update(numbered(positions), -numbered(positions), positions)  # and layer 1 raises
    assert cache.lengths.tolist() == [5, 5]
    assert run(cache, positions) == [[window_of(p) for p in range(5, 5 + length)]] * 2


def test_rows_go_on_from_others_when_they_are_reordered() -> None:
    cache = make()
    run(cache, torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1]]))
    cache.reorder(torch.tensor([1, 0]))
    assert cache.lengths.tolist() == [2, 5]
    assert run(cache, torch.tensor([[2], [5]])) == [[window_of(2)], [window_of(5)]]
    with pytest.raises(CacheError, match="row 1 goes back to position 4"):
        cache.begin(torch.tensor([[3], [4]]), 2)


def test_fields_of_a_mask_speak_of_positions() -> None:
    cache = make()
    run(cache, torch.arange(6))
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[0, 5] = keep[1, 6] = False
    mask = AttentionMask(causal=True, key_padding=keep)
    assert run(cache, torch.tensor([6]), mask) == [[[4, 6]], [[4, 5]]]
    bias = torch.arange(12.0).expand(1, 1, 1, 12)
    step = cache.begin(torch.tensor([7]), 2)
    keys, _, _ = step.layer(0).update(numbered(step.positions), numbered(step.positions), step.positions)
    derived = step.mask(AttentionMask(causal=True, bias=bias, keep=keep[:, None, None]), 0)
    assert derived.bias is not None
    assert torch.equal(derived.bias[:, 0, 0], keys[:, :, 0, 0]), "the bias of position p is p"
    assert step.mask(derived, 0) is derived


def test_fields_of_a_mask_that_tell_of_too_few_keys_are_refused() -> None:
    cache = make()
    run(cache, torch.arange(6))
    step = cache.begin(torch.tensor([6]), 2)
    step.layer(0).update(numbered(step.positions), numbered(step.positions), step.positions)
    with pytest.raises(MaskError, match="key_padding is for 3 keys, but there are 7") as caught:
        step.mask(AttentionMask(key_padding=torch.ones(2, 3, dtype=torch.bool)), 0)
    assert caught.value.field == "key_padding"


def test_positions_of_the_caller_stay() -> None:
    cache = make([(2, 0)])
    run(cache, torch.arange(5))
    step = cache.begin(torch.tensor([5]), 2)
    step.layer(0).update(numbered(step.positions), numbered(step.positions), step.positions)
    own = AttentionMask(causal=True, query_positions=torch.tensor([50]), key_positions=torch.arange(12) * 10)
    derived = step.mask(own, 0)
    assert derived.key_positions is not None
    assert sorted(derived.key_positions[0].tolist()) == [30, 40, 50]
    assert derived.query_positions is own.query_positions


def test_a_layer_used_alone_takes_each_update_for_a_step() -> None:
    cache = make([(WINDOW - 1, 0)])
    entry = cache.layer(0)
    for start, end in ((0, 5), (5, 6), (6, 8)):
        positions = torch.arange(start, end)
        keys, _, lengths = entry.update(numbered(positions), numbered(positions), positions)
        seen = visible(keys, entry.mask(AttentionMask(causal=True)), end - start)
        assert seen == [[window_of(p) for p in range(start, end)]] * 2
        assert lengths.tolist() == [end, end]


def test_what_comes_back_was_rounded_to_the_dtype_of_the_cache() -> None:
    cache, new = make([(1, 0)], dtype=torch.bfloat16), torch.full((2, 3, 1, 1), 1.001)
    entry = cache.layer(0)
    for start, end in ((0, 3), (3, 6), (6, 7)):
        keys, _, _ = entry.update(new[:, : end - start], new[:, : end - start], torch.arange(start, end))
        assert keys.dtype is torch.float32
        assert (keys == 1).all()


def request(*windows: Any) -> KVCacheRequest:
    return KVCacheRequest(
        context=BuildContext(mode="infer"), windows=windows, num_query_groups=1, head_size=2, value_head_size=3
    )


def test_the_builder_makes_what_the_request_asks_for() -> None:
    config: Any = None
    cache = build_sliding_window_kv_cache(config, request=request((1, 0), None), batch_size=2, capacity=7)
    assert cache.entries[0].value.shape == (2, 3, 1, 3)
    assert cache.entries[1].key.data.shape == (2, 8, 1, 2)


def test_the_builder_refuses_models_without_windows() -> None:
    supports = build_sliding_window_kv_cache.supports
    assert supports(request(None, (4, 0))) == []
    assert supports(request(None, (None, 0))) == ["no layer of the model has a window to its left"]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [({"batch_size": 0}, "batch_size is 0"), ({"capacity": 0}, "capacity is 0"), ({"windows": ()}, "num_layers is 0")],
)
def test_sizes_below_one_are_refused(sizes: dict[str, Any], text: str) -> None:
    with pytest.raises(CacheError, match=f"{text}; a cache needs at least 1."):
        make(**sizes)
