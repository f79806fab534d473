"""T5's buckets and ALiBi's slopes."""

from __future__ import annotations

import math

import pytest
import torch
from transom.transformer.position_bias import RelativePositionBias, alibi_slopes, relative_position_buckets


def bucket(distance: int, buckets: int, furthest: int, *, bidirectional: bool) -> int:
    """The definition, for one distance (key - query)."""
    first = 0
    if bidirectional:
        buckets //= 2
        first, away = (buckets if distance > 0 else 0), abs(distance)
    else:
        away = max(-distance, 0)
    exact = buckets // 2
    if away < exact:
        return first + away
    coarse = exact + int(math.log(away / exact) / math.log(furthest / exact) * (buckets - exact))
    return first + min(coarse, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (16, 64)])
def test_buckets_follow_the_definition_at_every_distance(bidirectional: bool, buckets: int, furthest: int) -> None:
    distances = list(range(-300, 301))
    got = relative_position_buckets(
        torch.tensor(distances), num_buckets=buckets, max_distance=furthest, bidirectional=bidirectional
    )
    expected = [bucket(x, buckets, furthest, bidirectional=bidirectional) for x in distances]
    different = [x for x, a, b in zip(distances, got.tolist(), expected, strict=True) if a != b]
    # At exact powers a logarithm in float32 may fall to the other side of a whole number.
    edges = {x for x in distances if abs(x) in (8 * 2**k for k in range(6))}
    assert set(different) <= edges
    assert got.min() >= 0
    assert got.max() < buckets


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("s", "t"), [(4, 4), (2, 5), (5, 2)])
def test_bias_reads_the_bucket_of_each_distance_when_aligned_bottom_right(bidirectional: bool, s: int, t: int) -> None:
    module = RelativePositionBias(3, num_buckets=8, max_distance=20, bidirectional=bidirectional)
    table = module.relative_attention_bias.weight
    got = module(s, t)
    assert got.shape == (1, 3, s, t)
    for i in range(s):
        for j in range(t):
            row = bucket(j - (t - s + i), 8, 20, bidirectional=bidirectional)
            assert torch.equal(got[0, :, i, j], table[row])


def test_bias_is_of_the_given_positions_when_they_are_per_row() -> None:
    module = RelativePositionBias(2)
    positions = torch.tensor([[3, 4], [7, 8]])
    got = module(2, 9, query_positions=positions)
    assert got.shape == (2, 2, 2, 9)
    assert torch.equal(got[:1], module(2, 9, query_positions=positions[0]))
    assert torch.equal(got[1:], module(2, 9))


def test_bias_starts_at_the_given_spread_and_learns() -> None:
    torch.manual_seed(0)
    module = RelativePositionBias(64, init_std=0.5)
    assert abs(float(module.relative_attention_bias.weight.detach().std()) - 0.5) < 0.05
    module(4, 4).sum().backward()
    assert module.relative_attention_bias.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("heads", [1, 2, 8, 16])
def test_slopes_are_a_geometric_series_when_heads_are_a_power_of_two(heads: int) -> None:
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor([2 ** (-8 * i / heads) for i in range(1, heads + 1)]))


def test_slopes_are_filled_from_twice_as_many_heads_when_not_a_power_of_two() -> None:
    got = alibi_slopes(12)
    torch.testing.assert_close(got[:8], alibi_slopes(8))
    torch.testing.assert_close(got[8:], alibi_slopes(16)[0:8:2])


def test_relative_bias_of_positions_that_begin_anew_is_that_of_their_distances() -> None:
    bias = RelativePositionBias(2, num_buckets=8, max_distance=12)
    positions = torch.tensor([0, 1, 2, 0, 1])
    both = bias(5, 5, query_positions=positions, key_positions=positions)
    torch.testing.assert_close(both[:, :, :3, :3], bias(3, 3))
    torch.testing.assert_close(both[:, :, 3:, 3:], bias(2, 2))
    rows = torch.stack([positions, torch.arange(5)])
    of_rows = bias(5, 5, query_positions=rows, key_positions=rows)
    torch.testing.assert_close(of_rows, torch.cat([both, bias(5, 5)]))
