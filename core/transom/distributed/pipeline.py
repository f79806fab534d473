"""Steps of a model whose layers are shared among ranks, on torch's pipeline schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage as TorchStage
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor

from transom.distributed.mesh import ParallelMesh
from transom.errors import ParallelError

__all__ = ["Pipeline", "ScheduleName", "StageModule"]

ScheduleName = Literal["gpipe", "1f1b", "interleaved"]


class StageModule(Protocol):
    """What a pipeline needs of a stage, as `transom.models.decoder_stage.DecoderStage`."""

    def shared(self) -> Iterator[nn.Parameter]:
        """Give the parameters that the first and the last stage both have."""
        ...

    def copies(self) -> Iterator[nn.Parameter]:
        """Give those of them that the other stage owns."""
        ...


@final
class Pipeline:
    """Runs forward and backward of a batch over all stages, a part of the batch at a time.

    Args:
        stages: this rank's, in order: one, or its virtual stages. Stage ``i`` of all is on rank ``i % pp``.
        mesh: of the ranks, which all make one.
        microbatches: into how many parts a batch is split; all parts are of one size.
        schedule: ``"gpipe"`` runs all forwards first, ``"1f1b"`` alternates and holds fewer activations;
            ``"interleaved"`` does so with several stages a rank, and waits less.

    Raises:
        ParallelError: a schedule for one stage is asked for with several, or the other way round.

    Source: Huang et al. 2019 (GPipe); Narayanan et al. 2021 (1F1B, interleaved).
    """

    def __init__(
        self, stages: Sequence[nn.Module], mesh: ParallelMesh, *, microbatches: int, schedule: ScheduleName = "1f1b"
    ) -> None:
        if (schedule == "interleaved") != (len(stages) > 1):
            raise ParallelError(
                f"the schedule {schedule!r} cannot run {len(stages)} stages a rank.",
                hint="interleaved for virtual stages, gpipe or 1f1b without",
                schedule=schedule,
                stages=len(stages),
            )
        if schedule == "1f1b" and microbatches < mesh.sizes.pp:
            raise ParallelError(
                f"{microbatches} parts of a batch do not keep {mesh.sizes.pp} stages busy.",
                hint=f"at least {mesh.sizes.pp} microbatches, or the schedule gpipe",
                microbatches=microbatches,
                stages=mesh.sizes.pp,
            )
        self.stages, self.mesh, self.microbatches = list(stages), mesh, microbatches
        self._place, ranks = mesh.place("pp"), mesh.sizes.pp
        device = torch.device(mesh.device_mesh.device_type)
        made = [
            TorchStage(stage, self._place + number * ranks, len(stages) * ranks, device, group=mesh.group("pp"))
            for number, stage in enumerate(stages)
        ]
        if schedule == "interleaved":
            self._schedule: Any = ScheduleInterleaved1F1B(list(made), microbatches, loss_fn=_mean)
        else:
            kind = ScheduleGPipe if schedule == "gpipe" else Schedule1F1B
            self._schedule = kind(made[0], microbatches, loss_fn=_mean)

    def run(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of a batch and add its gradients to the parameters'; every rank calls it.

        Args:
            tokens: ids ``[b, s]``; b is a multiple of the number of parts. The first stage reads them.
            labels: ids ``[b, s]``; the last stage reads them.

        Returns:
            the mean over all tokens, a scalar, the same on every rank.

        Raises:
            ParallelError: the batch does not divide.
        """
        if len(tokens) % self.microbatches:
            raise ParallelError(
                f"a batch of {len(tokens)} sequences does not divide into {self.microbatches} parts.",
                hint=f"a batch that is a multiple of {self.microbatches}, or other microbatches",
                batch_size=len(tokens),
                microbatches=self.microbatches,
            )
        is_last = self._place == self.mesh.sizes.pp - 1
        losses: list[Tensor] = []
        inputs = (tokens,) if self._place == 0 else ()
        self._schedule.step(*inputs, labels=labels, target=labels if is_last else None, losses=losses)
        mean = torch.zeros((), dtype=torch.float64, device=tokens.device)  # the last rank's losses may be float64
        if is_last:
            mean += torch.stack(losses).detach().mean()
        dist.all_reduce(mean, group=self.mesh.group("pp"))
        return mean

    @torch.no_grad()
    def sum_shared_gradients(self) -> None:
        """Add up the gradients of what the first and the last stage both have; every rank calls it, once a step."""
        ranks = self.mesh.sizes.pp
        if ranks == 1:
            return
        ends = (0, ranks - 1)
        own = [p for stage in self.stages for p in stage.shared()] if self._place in ends else []  # type: ignore[operator]
        others = dist.get_process_group_ranks(self.mesh.group("pp"))
        for parameter in own:
            gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            received = torch.empty_like(gradient)
            peer = others[ends[1] if self._place == ends[0] else ends[0]]
            exchange = [dist.P2POp(dist.isend, gradient.clone(), peer), dist.P2POp(dist.irecv, received, peer)]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            gradient.add_(received)


def _mean(losses: Tensor, _: Tensor) -> Tensor:
    return losses.mean()
