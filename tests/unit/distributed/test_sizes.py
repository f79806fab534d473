from __future__ import annotations

import pytest
from transom import TransformerConfig
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError


def test_sizes_multiply() -> None:
    sizes = ParallelSizes(tp=2, pp=3, dp=5, cp=7)
    assert (sizes.ranks, sizes.data) == (210, 35)


def test_sizes_fill_the_world_with_data_parallel_ranks() -> None:
    assert ParallelSizes.of_world(8, tp=2) == ParallelSizes(tp=2, dp=4)
    assert ParallelSizes.of_world(8, tp=2, dp=4) == ParallelSizes(tp=2, dp=4)
    assert ParallelSizes.of_world(1) == ParallelSizes()


@pytest.mark.parametrize(
    ("world", "sizes", "made", "text"),
    [
        (8, {"tp": 3}, 6, "tp=3,pp=1,dp=2,cp=1 makes 6 ranks, and 8 were started."),
        (2, {"tp": 4}, 4, "tp=4,pp=1,dp=1,cp=1 makes 4 ranks, and 2 were started."),
        (1, {"dp": 2}, 2, "tp=1,pp=1,dp=2,cp=1 makes 2 ranks, and 1 was started."),
    ],
)
def test_sizes_refuse_another_world(world: int, sizes: dict[str, int], made: int, text: str) -> None:
    with pytest.raises(ParallelError) as caught:
        ParallelSizes.of_world(world, **sizes)
    assert caught.value.what == text
    assert caught.value.hint == f"torchrun --nproc-per-node {made}, or other sizes"
    assert (caught.value.sizes.ranks, caught.value.world) == (made, world)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["tp", "pp", "dp", "cp"])
def test_sizes_refuse_what_is_no_number_of_ranks(name: str) -> None:
    with pytest.raises(ParallelError, match=f"{name} is 0, not a number of ranks"):
        ParallelSizes(**{name: 0})


def test_sizes_refuse_a_batch_that_does_not_divide() -> None:
    ParallelSizes(dp=4).check_batch(8)
    with pytest.raises(ParallelError, match="a batch of 6 sequences does not divide over 4 data-parallel") as caught:
        ParallelSizes(dp=4).check_batch(6)
    assert (caught.value.batch_size, caught.value.dp) == (6, 4)  # type: ignore[attr-defined]


def test_sizes_refuse_a_sequence_that_does_not_divide_where_it_is_split() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, tensor_model_parallel_size=2)
    ParallelSizes(tp=2).check_sequence(7, config)
    split = config.replace(sequence_parallel=True)
    ParallelSizes(tp=2).check_sequence(8, split)
    with pytest.raises(ParallelError, match="sequences of 7 tokens do not divide over 2 tensor-parallel") as caught:
        ParallelSizes(tp=2).check_sequence(7, split)
    assert (caught.value.length, caught.value.tp) == (7, 2)  # type: ignore[attr-defined]
    ParallelSizes(tp=2, cp=3).check_sequence(12, split)
    with pytest.raises(ParallelError, match=r"18 tokens do not divide over 4 .* ranks for each of 3 shares"):
        ParallelSizes(tp=4, cp=3).check_sequence(18, split)


def test_sizes_refuse_a_sequence_that_context_parallel_ranks_cannot_share() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    ParallelSizes(cp=3).check_sequence(12, config)
    with pytest.raises(ParallelError, match="9 tokens do not divide over 3 context-parallel ranks") as caught:
        ParallelSizes(cp=3).check_sequence(9, config)
    assert (caught.value.length, caught.value.cp) == (9, 3)  # type: ignore[attr-defined]
    assert caught.value.hint == "a train.sequence_length that is a multiple of 6"
