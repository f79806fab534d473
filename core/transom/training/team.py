"""Who trains: one process, or ranks that share the work. All that a run does otherwise for ranks is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from transom.checkpoint.store import Checkpoint, save_checkpoint
from transom.composition import check_ranks
from transom.distributed.agreement import together, told_by_first
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.launch import as_one_of, launched
from transom.distributed.mesh import ParallelMesh
from transom.distributed.restore import load_sharded_training
from transom.distributed.saver import BackgroundSaver
from transom.distributed.sizes import ParallelSizes
from transom.distributed.store import ShardedState
from transom.errors import ParallelError
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare

if TYPE_CHECKING:
    from transom.checkpoint.manifest import Manifest
    from transom.specs.plan import Plan
    from transom.specs.spec import ModelSpec
    from transom.specs.train_spec import TrainSpec
    from transom.training.sampler import Batch
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Alone", "RankTeam", "Team", "sizes_of_run", "split_over", "team_of"]


class Team(Protocol):
    """What a run leaves to those who train."""

    @property
    def is_first(self) -> bool:
        """Whether it is this one that reports, and writes what is common to all."""
        ...

    @property
    def tp_group(self) -> dist.ProcessGroup | None:
        """Those who share each layer's weights with this one."""
        ...

    @property
    def cp_group(self) -> dist.ProcessGroup | None:
        """Those who share each sequence with this one."""
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

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Split a model that was built, before it has an optimizer."""
        ...

    def share(self, batch: Batch) -> Batch:
        """Give this one's sequences of a batch, or its tokens of them."""
        ...

    def positions(self, length: int) -> Tensor | None:
        """Say where this one's tokens are in sequences of a length; `None` = they are all there."""
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


@final
class Alone:
    """One process.

    Example:
        >>> Alone().any(True), Alone().is_first
        (True, True)
    """

    is_first = True
    tp_group = None
    cp_group = None

    def describe(self) -> str:
        """Say that it is alone."""
        return "one process"

    def check(self, plan: Plan) -> None:
        """Agree with itself."""

    def agreed(self) -> AbstractContextManager[None]:
        """Let errors pass."""
        return nullcontext()

    def told(self, value: Any) -> Any:
        """Give it back."""
        return value

    def any(self, flag: bool) -> bool:
        """Give it back."""
        return flag

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Leave the model whole."""

    def share(self, batch: Batch) -> Batch:
        """Give all of it."""
        return batch

    def positions(self, length: int) -> Tensor | None:
        """Say that all are there."""
        return None

    def mean(self, loss: Tensor) -> Tensor:
        """Give it back."""
        return loss

    def total(self, numbers: Tensor) -> Tensor:
        """Give them back."""
        return numbers

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Bound the norm as torch does."""
        return nn.utils.clip_grad_norm_(model.parameters(), largest)

    def save(
        self,
        folder: Path,
        manifest: Manifest,
        model: nn.Module,
        optimizer: Optimizer,
        files: Mapping[str, bytes],
        afterwards: Callable[[], None],
    ) -> None:
        """Write a checkpoint."""
        save_checkpoint(folder, manifest, model, optimizer, files)
        afterwards()

    def wait(self) -> None:
        """Return: everything is written."""

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        """Put a training back, whoever wrote it."""
        if not checkpoint.manifest.sizes:
            checkpoint.load_training(model, optimizer)
        elif not load_sharded_training(checkpoint, model, optimizer):
            torch.manual_seed(_mixed(seed, checkpoint.manifest.step))


@final
class RankTeam:
    """This rank of several.

    Args:
        mesh: of all of them.
    """

    def __init__(self, mesh: ParallelMesh) -> None:
        self.mesh = mesh
        self.is_first = dist.get_rank() == 0
        self.tp_group, self.cp_group = mesh.tp_group, mesh.cp_group
        self._context = ContextShare(Ranks.of(mesh.cp_group))
        self._group = dist.group.WORLD
        self._saver = BackgroundSaver(mesh)
        self._stream = 0
        self._norm: GradientNorm | None = None

    def describe(self) -> str:
        """Give the mesh."""
        return str(self.mesh)

    def check(self, plan: Plan) -> None:
        """Compare the fingerprints of all ranks' plans."""
        assert self._group is not None
        check_ranks(plan, self._group)

    def agreed(self) -> AbstractContextManager[None]:
        """Let every rank raise what the first that fails raises."""
        return together(self._group)

    def told(self, value: Any) -> Any:
        """Give every rank what the first one has."""
        return told_by_first(value, self._group)

    def any(self, flag: bool) -> bool:
        """Whether it is so on one of the ranks."""
        told = torch.tensor(int(flag))
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Split the model over the ranks that see other tokens, and draw random numbers of this rank's own from now."""
        sizes, place = self.mesh.sizes, self.mesh.place
        plan: Any = model.plan  # set by transom.build
        shard_over_data(model, self.mesh, precision=settings.precision)
        self._norm = GradientNorm(model, self.mesh)
        # Where ranks hold different tokens, they must drop different elements.
        data = place("dp") * sizes.cp + place("cp")
        self._stream = 1 + data * sizes.tp + (place("tp") if plan.config.sequence_parallel else 0)
        torch.manual_seed(_mixed(settings.seed, 0, self._stream))

    def share(self, batch: Batch) -> Batch:
        """Give this data-parallel rank's sequences, and of them this context-parallel rank's tokens."""
        place, ranks = self.mesh.place("dp"), self.mesh.sizes.dp
        tokens, labels = (self._context.of(part.tensor_split(ranks)[place]) for part in batch)
        return tokens, labels

    def positions(self, length: int) -> Tensor | None:
        """Say where this context-parallel rank's tokens are."""
        return None if self.cp_group is None else self._context.positions(length)

    def mean(self, loss: Tensor) -> Tensor:
        """Average over the ranks that see other tokens, of which each sees as many."""
        return self.total(loss.clone()) / self.mesh.sizes.data

    def total(self, numbers: Tensor) -> Tensor:
        """Add up over the ranks that see other tokens."""
        dist.all_reduce(numbers, group=self.mesh.data.get_group())
        return numbers

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Sum what ranks computed in parts, and bound the norm over all of them."""
        assert self._norm is not None
        sum_partial_gradients(model, self.mesh)
        return self._norm.clip(largest)

    def save(
        self,
        folder: Path,
        manifest: Manifest,
        model: nn.Module,
        optimizer: Optimizer,
        files: Mapping[str, bytes],
        afterwards: Callable[[], None],
    ) -> None:
        """Begin to write a checkpoint, of which each rank writes its part."""
        state = ShardedState.of(model, optimizer, self.mesh)
        self._saver.save(folder, manifest, state, files, afterwards if self.is_first else lambda: None)

    def wait(self) -> None:
        """Return once what was begun is written."""
        self._saver.wait()

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        """Put a training back, whoever wrote it."""
        if not load_sharded_training(checkpoint, model, optimizer, self.mesh):
            torch.manual_seed(_mixed(seed, checkpoint.manifest.step, self._stream))


@contextmanager
def team_of(sizes: ParallelSizes, device: str) -> Iterator[Team]:
    """Join the other ranks, where there are any.

    Args:
        sizes: whose product is the number of processes.
        device: type of the devices.

    Yields:
        this rank's team.
    """
    if sizes.ranks == 1:
        yield Alone()
        return
    with as_one_of(sizes, device) as mesh:
        yield RankTeam(mesh)


def sizes_of_run(
    config: TransformerConfig, *, tp: int | None = None, dp: int | None = None, cp: int | None = None
) -> ParallelSizes:
    """Say how the processes that ``torchrun`` started share the work.

    Args:
        config: says tp and cp where they are not given.
        tp: ranks that share each layer's weights.
        dp: ranks that see other data; `None` = as many as are left.
        cp: ranks that share each sequence.

    Raises:
        ParallelError: that makes more or fewer ranks than were started, or the config asks for what is not trained.
    """
    for field in ("pipeline_model_parallel_size",):
        if getattr(config, field) > 1:
            raise ParallelError(
                f"{field} is {getattr(config, field)}; runs share weights, sequences and data alone.",
                asked_by=f"config.{field}",
                hint=f"{field}: 1",
                field=field,
            )
    tp, cp = tp or config.tensor_model_parallel_size, cp or config.context_parallel_size
    return ParallelSizes.of_world(launched(), tp=tp, dp=dp, cp=cp)


def split_over(spec: ModelSpec, sizes: ParallelSizes) -> ModelSpec:
    """Give the spec of one rank's model; the run's own stays that of the whole."""
    has = {"tensor_model_parallel_size": sizes.tp, "context_parallel_size": sizes.cp}
    if all(getattr(spec.config, name) == size for name, size in has.items()):
        return spec
    config = spec.config.replace(**has)
    return msgspec.structs.replace(spec, config=config).with_origin(spec.source, {})


def _mixed(*numbers: int) -> int:
    """Make one seed of several numbers; other numbers give another, but by chance."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 29
    return mixed % 2**63
