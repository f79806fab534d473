"""Which schedule a pipeline runs, and into how many parts a batch is split for it."""

from __future__ import annotations

from transom.errors import ParallelError
from transom.specs.train_spec import ScheduleName

__all__ = ["check_schedule", "microbatches_of", "schedule_of"]

_MOST = 4
"""Parts of a batch for each stage, where nobody says: a fifth of the time is spent waiting then, or less."""


def schedule_of(asked: ScheduleName | None, virtual: int) -> ScheduleName:
    """Choose the schedule that is usual for a number of stages a rank.

    Args:
        asked: by the user, which wins; `None` = nothing.
        virtual: stages of each rank.

    Example:
        >>> schedule_of(None, 1), schedule_of(None, 2), schedule_of("zero_bubble", 2)
        ('1f1b', 'interleaved', 'zero_bubble')
    """
    return asked or ("interleaved" if virtual > 1 else "1f1b")


def microbatches_of(asked: int | None, sequences: int, stages: int) -> int:
    """Choose into how many parts each data-parallel rank's share of a batch is split.

    Args:
        asked: by the user, which wins; `None` = nothing: four parts a stage, or fewer where that does not divide.
        sequences: of the share.
        stages: ranks of the pipeline.

    Raises:
        ParallelError: the share does not divide.

    Example:
        >>> microbatches_of(None, 16, 2), microbatches_of(None, 6, 2), microbatches_of(4, 16, 2)
        (8, 6, 4)
    """
    usual = (stages * times for times in range(_MOST, 0, -1))
    count = asked or next((parts for parts in usual if sequences % parts == 0), stages)
    if sequences % count:
        raise ParallelError(
            f"{sequences} sequences (train.batch_size of one data-parallel rank) do not divide into "
            f"{count} microbatches.",
            asked_by="train.microbatches" if asked else f"pp={stages}, which needs a part for each stage",
            hint=f"a train.batch_size that is a multiple of {count} for each data-parallel rank, or other microbatches",
            sequences=sequences,
            microbatches=count,
        )
    return count


def check_schedule(name: ScheduleName, microbatches: int, *, stages: int, virtual: int) -> None:
    """Refuse what a schedule cannot run.

    Args:
        name: of the schedule.
        microbatches: parts of a batch.
        stages: ranks of the pipeline.
        virtual: stages of each rank.

    Raises:
        ParallelError: it is for one stage a rank and there are several, or the other way round; or the parts are too
            few, or not of one size round after round.
    """
    if (name == "interleaved") != (virtual > 1) and name != "zero_bubble":
        raise ParallelError(
            f"the schedule {name!r} cannot run {virtual} stage{'s' if virtual > 1 else ''} a rank.",
            asked_by="train.schedule",
            hint="interleaved or zero_bubble for virtual stages; gpipe, 1f1b or zero_bubble without",
            schedule=name,
            virtual=virtual,
        )
    if name != "gpipe" and microbatches < stages:
        raise ParallelError(
            f"{microbatches} parts of a batch do not keep {stages} stages busy.",
            asked_by="train.microbatches",
            hint=f"at least {stages} microbatches, or the schedule gpipe",
            microbatches=microbatches,
            stages=stages,
        )
    if name in ("interleaved", "zero_bubble") and microbatches % (microbatches // stages):
        raise ParallelError(
            f"{microbatches} parts of a batch do not make rounds of one size over {stages} stages.",
            asked_by="train.microbatches",
            hint=f"a multiple of {stages} microbatches",
            microbatches=microbatches,
            stages=stages,
        )
