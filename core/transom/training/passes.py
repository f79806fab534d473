"""Forward and backward passes of a batch: of a model in one piece, or of the stages of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn

from transom.transformer.auxiliary_loss import auxiliary_share
from transom.transformer.delayed_wgrad import add_delayed_gradients

if TYPE_CHECKING:
    from transom.distributed.pipeline import Pipeline
    from transom.training.objective import Objective
    from transom.training.sampler import Batch

__all__ = ["Passes", "PipelinedPasses", "WholePasses"]


class Passes(Protocol):
    """Runs the share of a batch that this one has."""

    def train(self, batch: Batch, number: int, parts: int) -> Tensor:
        """Add the gradients of a batch's mean loss to the parameters'.

        Args:
            batch: this one's share.
            number: of the batch.
            parts: batches that a step is the mean of, this one among them.

        Returns:
            the mean loss divided by `parts`, a scalar; the same on all who have parts of one model.
        """
        ...

    def losses(self, batch: Batch, number: int) -> Tensor | None:
        """Compute each learned token's loss ``[b, s]``, without gradients.

        Args:
            batch: this one's share.
            number: of the batch.

        Returns:
            nats; `None` on those who do not have the model's end.
        """
        ...


@final
class WholePasses:
    """Passes of a model in one piece.

    Args:
        model: whole, or its share of every layer.
        objective: what it learns.
        device: where it is.
        precision: ``"bfloat16"`` = autocast.
        positions: of its tokens in their sequences, ``[s]``; `None` = 0 ... s-1.
        delayed: its linears delay the gradients of their weights.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        device: torch.device,
        precision: str,
        *,
        positions: Tensor | None = None,
        delayed: bool = False,
    ) -> None:
        self._model, self._objective, self._device, self._precision = model, objective, device, precision
        self._positions, self._delayed = positions, delayed

    def train(self, batch: Batch, number: int, parts: int) -> Tensor:
        """Run forward, then backward."""
        with auxiliary_share(1 / parts):  # backward may compute parts of the model again
            loss = self.losses(batch, number).mean() / parts
            loss.backward()  # type: ignore[no-untyped-call]
        if self._delayed:
            add_delayed_gradients(self._model)
        return loss.detach()

    def losses(self, batch: Batch, number: int) -> Tensor:
        """Run forward."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            return self._objective.losses(self._model, batch, number, self._device, self._positions)


@final
class PipelinedPasses:
    """Passes of the stages that one rank has.

    Args:
        pipeline: runs them, together with the other ranks'.
        objective: what the model learns.
        device: where it is.
        precision: ``"bfloat16"`` = autocast.
        positions: of the rank's tokens in their sequences, ``[s]``; `None` = 0 ... s-1.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Objective,
        device: torch.device,
        precision: str,
        *,
        positions: Tensor | None = None,
    ) -> None:
        self._pipeline, self._objective, self._device, self._positions = pipeline, objective, device, positions
        for stage in pipeline.model.stages if precision == "bfloat16" else ():
            # Around each forward pass alone: the schedule runs backward passes in between.
            forward: Any = torch.autocast(device.type, torch.bfloat16)(stage.forward)
            stage.forward = forward

    def train(self, batch: Batch, number: int, parts: int) -> Tensor:
        """Run forward and backward of all stages, as the schedule says."""
        first, named = self._objective.inputs(batch, number, self._device, self._positions)
        return self._pipeline.run(first, named, weight=1 / parts)

    def losses(self, batch: Batch, number: int) -> Tensor | None:
        """Run forward of all stages."""
        first, named = self._objective.inputs(batch, number, self._device, self._positions)
        return self._pipeline.losses(first, named)
