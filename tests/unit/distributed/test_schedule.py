from __future__ import annotations

import pytest
from transom.distributed.schedule import check_schedule, microbatches_of, schedule_of
from transom.errors import ParallelError


def test_schedule_follows_the_number_of_stages_unless_asked() -> None:
    assert [schedule_of(None, virtual) for virtual in (1, 2)] == ["1f1b", "interleaved"]
    assert schedule_of("gpipe", 1) == "gpipe"


@pytest.mark.parametrize(
    ("sequences", "stages", "expected"), [(16, 2, 8), (16, 4, 16), (12, 4, 12), (8, 4, 8), (4, 4, 4), (6, 2, 6)]
)
def test_microbatches_are_four_a_stage_or_fewer(sequences: int, stages: int, expected: int) -> None:
    assert microbatches_of(None, sequences, stages) == expected
    assert microbatches_of(2, sequences, stages) == 2


@pytest.mark.parametrize(("asked", "count"), [(3, 3), (None, 4)])
def test_batch_that_does_not_divide_is_refused(asked: int | None, count: int) -> None:
    with pytest.raises(ParallelError, match=f"do not divide into {count} microbatches") as caught:
        microbatches_of(asked, 10, 4)
    assert (caught.value.sequences, caught.value.microbatches) == (10, count)


@pytest.mark.parametrize(
    ("name", "microbatches", "virtual", "text"),
    [
        ("interleaved", 4, 1, "the schedule 'interleaved' cannot run 1 stage a rank."),
        ("gpipe", 4, 2, "the schedule 'gpipe' cannot run 2 stages a rank."),
        ("1f1b", 1, 1, "1 parts of a batch do not keep 2 stages busy."),
        ("zero_bubble", 5, 1, "5 parts of a batch do not make rounds of one size over 2 stages."),
    ],
)
def test_what_no_schedule_can_run_is_refused(name: str, microbatches: int, virtual: int, text: str) -> None:
    with pytest.raises(ParallelError) as caught:
        check_schedule(name, microbatches, stages=2, virtual=virtual)  # type: ignore[arg-type]
    assert caught.value.what == text


@pytest.mark.parametrize(
    ("name", "microbatches", "virtual"),
    [("gpipe", 1, 1), ("1f1b", 3, 1), ("zero_bubble", 4, 1), ("zero_bubble", 4, 2), ("interleaved", 6, 3)],
)
def test_what_a_schedule_can_run_is_not_refused(name: str, microbatches: int, virtual: int) -> None:
    check_schedule(name, microbatches, stages=2, virtual=virtual)  # type: ignore[arg-type]
