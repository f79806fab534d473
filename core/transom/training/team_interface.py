"""What a run leaves to those who train, one process or ranks that share the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from transom.checkpoint.manifest import Manifest
    from transom.checkpoint.store import Checkpoint
    from transom.specs.plan import Plan
    from transom.specs.spec import ModelSpec
    from transom.specs.train_spec import TrainSpec
    from transom.training.objective import Objective
    from transom.training.passes import Passes
    from transom.training.sampler import Batch

__all__ = ["Team"]


class Team(Protocol):
    """What a run leaves to those who train."""

    @property
    def is_first(self) -> bool:
        """Whether it is this one that reports, and writes what is common to all."""
        ...

    def describe(self) -> str:
        """Say who they are, in one line."""
        ...

    def check(self, plan: Plan) -> None:
        """Refuse plans that are not the same."""
        ...

    def agreed(self) -> AbstractContextManager[None]:
        """Let all raise what one raises inside."""
        ...

    def told(self, value: Any) -> Any:
        """Give all what the first one has."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is so for one of them."""
        ...

    def built(self, plan: Plan, seed: int, device: str) -> nn.Module:
        """Build what this one has of a model, with the weights of one seed."""
        ...

    def begin_with(self, model: nn.Module, folder: Path) -> ModelSpec:
        """Put the weights of a folder into what was built, before it is taken over; give the spec of their own."""
        ...

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Split a model that was built, before it has an optimizer."""
        ...

    def passes(
        self, model: nn.Module, objective: Objective, settings: TrainSpec, length: int, device: torch.device
    ) -> Passes:
        """Say how forward and backward run over a model that was taken over, with sequences of a length."""
        ...

    def parameters(self, model: nn.Module) -> int:
        """Count the numbers that are trained, of all together."""
        ...

    def rows(self, count: int, full: int) -> int:
        """Say to how many sequences a batch must be filled up that has fewer than a full one."""
        ...

    def share(self, batch: Batch) -> Batch:
        """Give this one's sequences of a batch, or its tokens of them."""
        ...

    def mean(self, loss: Tensor) -> Tensor:
        """Average a loss of shares of one size."""
        ...

    def total(self, numbers: Tensor) -> Tensor:
        """Add up what each has measured of its share."""
        ...

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Finish the gradients and bound their norm, which is returned as it was."""
        ...

    def save(
        self,
        folder: Path,
        manifest: Manifest,
        model: nn.Module,
        optimizer: Optimizer,
        files: Mapping[str, bytes],
        afterwards: Callable[[], None],
    ) -> None:
        """Write a checkpoint, or begin to."""
        ...

    def wait(self) -> None:
        """Return once what was begun is written."""
        ...

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        """Put a training back; where its random numbers cannot go on, they begin anew from a seed and the step."""
        ...
