"""Steps of a model whose layers are shared among ranks, on torch's pipeline schedules."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage as TorchStage
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from transom.distributed.mesh import ParallelMesh
from transom.distributed.schedule import check_schedule
from transom.distributed.stages import RankStages
from transom.errors import ParallelError, TransomError
from transom.specs.train_spec import ScheduleName
from transom.transformer.auxiliary_loss import auxiliary_share

__all__ = ["Pipeline"]

_OF_ONE_STAGE: Mapping[ScheduleName, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
_OF_STAGES: Mapping[ScheduleName, Any] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}


@final
class Pipeline:
    """Runs forward and backward of a batch over all stages, a part of the batch at a time.

    Args:
        model: this rank's stages. Stage ``i`` of all is on rank ``i % pp``.
        mesh: of the ranks, which all make one.
        microbatches: into how many parts a batch is split; all parts are of one size.
        schedule: ``"gpipe"`` runs all forwards first, ``"1f1b"`` alternates and holds fewer activations;
            ``"interleaved"`` does so with several stages a rank, and waits less; ``"zero_bubble"``, with any number of
            stages, computes the gradients of weights apart, while it would wait.

    Raises:
        ParallelError: the schedule cannot run these stages or this number of parts.

    Source: Huang et al. 2019 (GPipe); Narayanan et al. 2021 (1F1B, interleaved); Qi et al. 2023 (ZB-H1), all as torch
    has them.
    """

    def __init__(
        self,
        model: RankStages,
        mesh: ParallelMesh,
        *,
        microbatches: int,
        schedule: ScheduleName = "1f1b",
    ) -> None:
        ranks, count = mesh.sizes.pp, len(model.stages)
        check_schedule(schedule, microbatches, stages=ranks, virtual=count)
        self.model, self.microbatches = model, microbatches
        self._group, self._place = mesh.group("pp"), mesh.place("pp")
        self._is_last = self._place == ranks - 1
        self._weight = 1.0
        made = [
            TorchStage(
                stage,
                self._place + number * ranks,
                count * ranks,
                torch.device(mesh.device_mesh.device_type),
                group=self._group,
            )
            for number, stage in enumerate(model.stages)
        ]
        kind: Any = _OF_ONE_STAGE.get(schedule) or _OF_STAGES[schedule]
        stages = made[0] if schedule in _OF_ONE_STAGE else made
        # Losses come divided already: torch would divide what earlier batches of the step have added, too.
        self._schedule: Any = kind(stages, microbatches, loss_fn=self._mean, scale_grads=False)

    def run(self, first: Tensor, batch: Mapping[str, Tensor], *, weight: float = 1.0) -> Tensor:
        """Compute the mean loss of a batch and add its gradients to the parameters'; every rank calls it.

        Afterwards, once a step, `RankStages.sum_shared_gradients` is to be called.

        Args:
            first: what the first stage starts from, ids ``[b, s]``; b is a multiple of the number of parts.
            batch: what all stages are given, ``[b, ...]`` each.
            weight: of this batch in the step.

        Returns:
            the weighted mean over all tokens, a scalar, the same on every rank.

        Raises:
            ParallelError: the batch does not divide.
        """
        self._weight = weight / self.microbatches
        losses: list[Tensor] = []
        with auxiliary_share(self._weight):
            self._step(self._schedule.step, first, batch, losses)
        total = torch.zeros((), dtype=torch.float64, device=first.device)  # the last rank's losses may be float64
        if self._is_last:
            total += torch.stack(losses).detach().sum()
        dist.all_reduce(total, group=self._group)
        return total

    @torch.no_grad()
    def losses(self, first: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Compute each token's loss without gradients; every rank calls it.

        Args:
            first: as in `run`, likewise batch.
            batch: what all stages are given.

        Returns:
            ``[b, s]`` on the rank of the last stage; `None` on others.

        Raises:
            ParallelError: the batch does not divide.
        """
        found: Tensor | None = self._step(self._schedule.eval, first, batch, [])
        return found if self._is_last else None

    def _step(self, step: Any, first: Tensor, batch: Mapping[str, Tensor], losses: list[Tensor]) -> Any:
        if len(first) % self.microbatches:
            raise ParallelError(
                f"a batch of {len(first)} sequences does not divide into {self.microbatches} parts.",
                hint=f"a batch that is a multiple of {self.microbatches}, or other microbatches",
                batch_size=len(first),
                microbatches=self.microbatches,
            )
        received = (first,) if self._place == 0 else ()
        # Losses are all that there is: torch wants a target all the same.
        with _in_few_words():
            return step(*received, **batch, target=first if self._is_last else None, losses=losses)

    def _mean(self, losses: Tensor, _: Tensor) -> Tensor:
        return losses.mean() * self._weight


@contextmanager
def _in_few_words() -> Iterator[None]:
    """Let errors say what they say: torch prints the whole schedule, and wraps what a stage raises."""
    log = logging.getLogger(ScheduleGPipe.__module__)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, TransomError):
            raise error.__cause__ from None
        raise
    finally:
        log.setLevel(before)
