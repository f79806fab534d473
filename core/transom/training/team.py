"""Who trains: one process, or ranks that share the work. All that a run does otherwise for ranks is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from transom.checkpoint.hugging_face.folder import is_hugging_face
from transom.checkpoint.store import Checkpoint, open_checkpoint, save_checkpoint
from transom.composition import build, build_stages, check_ranks
from transom.distributed.agreement import together, told_by_first
from transom.distributed.data_parallel import put_to_rest, shard_over_data
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.launch import as_one_of
from transom.distributed.mesh import ParallelMesh
from transom.distributed.pipeline import Pipeline
from transom.distributed.restore import load_sharded_model, load_sharded_training
from transom.distributed.saver import BackgroundSaver
from transom.distributed.schedule import microbatches_of, schedule_of
from transom.distributed.sizes import ParallelSizes
from transom.distributed.stages import RankStages
from transom.distributed.store import ShardedState
from transom.errors import ParallelError
from transom.pretrained.load import load_weights
from transom.specs.load import load_spec
from transom.training.passes import Passes, PipelinedPasses, WholePasses
from transom.training.team_interface import Team
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare
from transom.transformer.partial_gradients import own_parameters

if TYPE_CHECKING:
    from transom.checkpoint.manifest import Manifest
    from transom.specs.plan import Plan
    from transom.specs.spec import ModelSpec
    from transom.specs.train_spec import TrainSpec
    from transom.training.objective import Objective
    from transom.training.sampler import Batch

__all__ = ["Alone", "RankTeam", "Team", "team_of"]


@final
class Alone:
    """One process.

    Example:
        >>> Alone().any(True), Alone().is_first
        (True, True)
    """

    is_first = True

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

    def built(self, plan: Plan, seed: int, device: str) -> nn.Module:
        """Build it whole."""
        return build(plan, seed=seed, device=device)

    def begin_with(self, model: nn.Module, folder: Path) -> ModelSpec:
        """Load them whole."""
        return load_weights(model, folder)

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Leave the model whole."""

    def passes(
        self, model: nn.Module, objective: Objective, settings: TrainSpec, length: int, device: torch.device
    ) -> Passes:
        """Run it whole."""
        return WholePasses(model, objective, device, settings.precision, delayed=_delays(model))

    def parameters(self, model: nn.Module) -> int:
        """Count them."""
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def rows(self, count: int, full: int) -> int:
        """Leave a batch as it is."""
        return count

    def share(self, batch: Batch) -> Batch:
        """Give all of it."""
        return batch

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

    def built(self, plan: Plan, seed: int, device: str) -> nn.Module:
        """Build this rank's share of every layer, or of those of its stages."""
        mesh = self.mesh
        if mesh.sizes.pp == 1:
            return build(plan, seed=seed, device=device, tp_group=mesh.tp_group, cp_group=mesh.cp_group)
        stages = build_stages(
            plan,
            place=mesh.place("pp"),
            seed=seed,
            device=device,
            tp_group=mesh.tp_group,
            cp_group=mesh.cp_group,
        )
        model = RankStages(stages, mesh)
        model.__dict__["plan"] = stages[0].plan
        return model

    def begin_with(self, model: nn.Module, folder: Path) -> ModelSpec:
        """Load them whole, or this rank's part of a checkpoint."""
        sizes = self.mesh.sizes
        if sizes.tp == sizes.pp == 1:
            return load_weights(model, folder)
        if is_hugging_face(folder):
            raise ParallelError(
                f"{folder} is of Hugging Face's form, of which ranks that share weights or layers cannot read a part.",
                asked_by="train.init_from",
                hint=f"transom convert {folder} NEW, and begin with NEW",
                folder=folder,
            )
        checkpoint = open_checkpoint(folder)
        load_sharded_model(checkpoint, model, self.mesh)
        return load_spec(checkpoint.manifest.spec)

    def take_over(self, model: nn.Module, settings: TrainSpec) -> None:
        """Split the model over the ranks that see other tokens, and draw random numbers of this rank's own from now."""
        sizes, place = self.mesh.sizes, self.mesh.place
        plan: Any = model.plan  # set by transom.build
        for part in model.stages if isinstance(model, RankStages) else [model]:
            shard_over_data(part, self.mesh, precision=settings.precision)
        self._norm = GradientNorm(model, self.mesh)
        # Where ranks hold different tokens or layers, they must drop different elements.
        data = (place("pp") * sizes.dp + place("dp")) * sizes.cp + place("cp")
        self._stream = 1 + data * sizes.tp + (place("tp") if plan.config.sequence_parallel else 0)
        torch.manual_seed(_mixed(settings.seed, 0, self._stream))

    def passes(
        self, model: nn.Module, objective: Objective, settings: TrainSpec, length: int, device: torch.device
    ) -> Passes:
        """Run it whole, or in a pipeline of ranks with all of its layers."""
        positions = None if self.mesh.sizes.cp == 1 else self._context.positions(length, device)
        if not isinstance(model, RankStages):
            delayed = _delays(model)
            return WholePasses(model, objective, device, settings.precision, positions=positions, delayed=delayed)
        sizes = self.mesh.sizes
        pipeline = Pipeline(
            model,
            self.mesh,
            microbatches=microbatches_of(settings.microbatches, settings.batch_size // sizes.dp, sizes.pp),
            schedule=schedule_of(settings.schedule, len(model.stages)),
        )
        return PipelinedPasses(pipeline, objective, device, settings.precision, positions=positions)

    def parameters(self, model: nn.Module) -> int:
        """Count those of all stages, each once."""
        copies = {id(copy) for copy in model.copies()} if isinstance(model, RankStages) else set()
        own = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in copies)
        # Tensor-parallel ranks have as many each: experts are spread evenly.
        own += (self.mesh.sizes.tp - 1) * sum(p.numel() for p in own_parameters(model) if p.requires_grad)
        count = torch.tensor(own)
        dist.all_reduce(count, group=self.mesh.group("pp"))
        return int(count)

    def rows(self, count: int, full: int) -> int:
        """Fill a batch up to as many for each data-parallel rank; those of a pipeline have one shape."""
        ranks = self.mesh.sizes.dp
        return full if self.mesh.sizes.pp > 1 else -(-count // ranks) * ranks

    def share(self, batch: Batch) -> Batch:
        """Give this data-parallel rank's sequences, and of them this context-parallel rank's tokens."""
        place, ranks = self.mesh.place("dp"), self.mesh.sizes.dp
        tokens, labels = (part.tensor_split(ranks)[place] for part in batch)
        if self.mesh.sizes.cp > 1:  # else sequences may be of any length
            tokens, labels = self._context.of(tokens), self._context.of(labels)
        return tokens, labels

    def mean(self, loss: Tensor) -> Tensor:
        """Average over the ranks that see other tokens, of which each sees as many."""
        mean = loss / self.mesh.sizes.data
        dist.all_reduce(mean, group=self.mesh.data.get_group())
        return mean

    def total(self, numbers: Tensor) -> Tensor:
        """Add up over the ranks that see other tokens, of which those with a model's end have measured something."""
        dist.all_reduce(numbers, group=self.mesh.data.get_group())
        if self.mesh.sizes.pp > 1:
            dist.all_reduce(numbers, group=self.mesh.group("pp"))
        return numbers

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Sum what ranks computed in parts, and bound the norm over all of them."""
        assert self._norm is not None
        if isinstance(model, RankStages):
            model.sum_shared_gradients()
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
        put_to_rest(model)
        state = ShardedState.of(model, optimizer, self.mesh)
        self._saver.save(folder, manifest, state, files, afterwards if self.is_first else lambda: None)

    def wait(self) -> None:
        """Return once what was begun is written."""
        self._saver.wait()

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        """Put a training back, whoever wrote it."""
        put_to_rest(model)
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


def _delays(model: nn.Module) -> bool:
    planned = getattr(model, "plan", None)
    return planned is not None and planned.config.delay_wgrad_compute


def _mixed(*numbers: int) -> int:
    """Make one seed of several numbers; other numbers give another, but by chance."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 29
    return mixed % 2**63
