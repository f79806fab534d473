"""What a decoder keeps of what it reads; how T5 uses it is tested with T5."""

from __future__ import annotations

import pytest
import torch
from transom.errors import CacheError
from transom.transformer.context_cache import ContextEntry, EncoderDecoderCache
from transom.transformer.kv_cache import StaticKVCache


def make(rows: int = 2) -> EncoderDecoderCache:
    written = StaticKVCache(num_layers=1, batch_size=rows, capacity=4, num_query_groups=1, head_size=2)
    return EncoderDecoderCache(written, num_layers=1)


def project(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return states[:, :, None], -states[:, :, None]


def test_an_entry_projects_once() -> None:
    entry, calls = ContextEntry(), []

    def counted(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return project(states)

    first = entry.read(torch.ones(1, 3, 2), counted)
    assert entry.read(None, counted) is first
    assert len(calls) == 1


def test_an_entry_that_holds_nothing_says_so() -> None:
    with pytest.raises(CacheError, match="holds nothing that could be read"):
        ContextEntry().read(None, project)


def test_another_source_is_read_anew_and_the_same_is_not() -> None:
    cache, source = make(), torch.randn(2, 3, 2)
    cache.read_from(source, 2)
    kept = cache.entries[0].read(source, project)
    cache.read_from(source, 2)
    cache.read_from(None, 2)
    assert cache.entries[0].held is kept
    cache.read_from(source + 1, 2)
    assert cache.entries[0].held is None


def test_reordering_moves_what_was_written_and_what_is_read() -> None:
    cache, source = make(), torch.randn(2, 3, 2)
    cache.read_from(source, 2)
    cache.entries[0].read(source, project)
    step = cache.begin(torch.tensor([0]), 2)
    key = torch.randn(2, 1, 1, 2)
    step.layer(0).update(key, key, torch.tensor([0]))
    step.commit()
    cache.reorder(torch.tensor([1, 1]))
    assert torch.equal(cache.entries[0].held[0][0], source[1, :, None])
    step = cache.begin(torch.tensor([1]), 2)
    keys, *_ = step.layer(0).update(key, key, torch.tensor([1]))
    assert torch.equal(keys[:, 0], key[[1, 1], 0])


def test_resetting_forgets_both() -> None:
    cache, source = make(), torch.randn(2, 3, 2)
    cache.read_from(source, 2)
    step = cache.begin(torch.tensor([0, 1]), 2)
    step.commit()
    assert cache.lengths.tolist() == [2, 2]
    cache.rewind(1)
    assert cache.lengths.tolist() == [1, 1]
    cache.reset()
    assert (cache.source, cache.lengths.tolist()) == (None, [0, 0])
    with pytest.raises(CacheError, match="the decoder has nothing to read"):
        cache.read_from(None, 2)


def test_rows_that_do_not_fit_are_refused() -> None:
    cache = make()
    with pytest.raises(CacheError, match="the cache reads 3 rows and the step writes 2") as error:
        cache.read_from(torch.zeros(3, 4, 2), 2)
    assert (error.value.capacity, error.value.asked) == (3, 2)
    with pytest.raises(CacheError, match="5 positions are asked for and the cache holds 4"):
        cache.check(2, 5)
    assert (cache.batch_size, cache.capacity) == (2, 4)
