"""Loading a checkpoint on any number of ranks, whoever wrote it: as many ranks, others, or one process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from transom.checkpoint.model_state import mismatch
from transom.checkpoint.random_state import restore_random
from transom.checkpoint.store import Checkpoint
from transom.checkpoint.tensors import read_tensors
from transom.distributed.agreement import together
from transom.distributed.mesh import ParallelMesh
from transom.distributed.pieces import PieceLoader, Pieces, model_pieces, optimizer_pieces
from transom.distributed.store import SHARDS, random_file
from transom.distributed.whole import has_other_layout, load_whole_model, load_whole_training

__all__ = ["load_sharded_model", "load_sharded_training"]

Stored = Mapping[str, TensorStorageMetadata]


def load_sharded_model(checkpoint: Checkpoint, model: nn.Module, mesh: ParallelMesh | None = None) -> None:
    """Put the weights of a checkpoint into a model of the same spec.

    Args:
        checkpoint: of one process or of ranks.
        model: on this rank, split as it will be used.
        mesh: of the ranks, which all call it; `None` = one process.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are another model's; on every rank. The model is
            untouched.
    """
    reading = _Reading(checkpoint, mesh)
    if reading.is_of_other_layout(model):
        load_whole_model(reading.source, model)
        return
    reading.fill(reading.of_model(model), "the weights are not this model's")


def load_sharded_training(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, mesh: ParallelMesh | None = None
) -> bool:
    """Put weights, optimizer state and, where as many ranks wrote it, random state back.

    Args:
        checkpoint: of one process or of ranks.
        model: of the same spec, on this rank.
        optimizer: over its parameters; its state is replaced.
        mesh: of the ranks, which all call it; `None` = one process.

    Returns:
        whether the random generators go on where they were; if not, they are untouched, since other ranks wrote it.

    Raises:
        CheckpointError: as for `load_sharded_model`.
    """
    reading = _Reading(checkpoint, mesh)
    if reading.is_of_other_layout(model):
        load_whole_training(reading.source, model, optimizer)
        return False
    pieces = reading.of_model(model)
    optimizer.state.clear()
    optimizer.state.update(reading.empty_state(model, optimizer, pieces))
    pieces |= optimizer_pieces(model, optimizer, tensor_parallel_rank=reading.tensor_rank, apart=reading.apart)
    reading.fill(pieces, "the state is not this model's")
    if checkpoint.manifest.sizes != ({} if mesh is None else asdict(mesh.sizes)):
        return False
    with together(reading.group):
        restore_random(read_tensors(checkpoint.file(random_file(dist.get_rank()) if mesh else "random.safetensors")))
    return True


class _Reading:
    """One checkpoint, verified, and what it has."""

    def __init__(self, checkpoint: Checkpoint, mesh: ParallelMesh | None) -> None:
        self.group: ProcessGroup | None = None if mesh is None else dist.group.WORLD
        self.tensor_rank = 0 if mesh is None else mesh.place("tp")
        self.apart = bool(checkpoint.manifest.sizes)  # ranks save gate and up apart; one process does not
        self.source = checkpoint.folder / (SHARDS if self.apart else "")
        rank, ranks = (0, 1) if mesh is None else (dist.get_rank(), mesh.sizes.ranks)
        with together(self.group):
            for name in sorted(checkpoint.manifest.files)[rank::ranks]:
                checkpoint.file(name)
        with together(self.group):
            self.reader = HuggingFaceStorageReader(str(self.source))
            self.stored: Stored = self.reader.read_metadata().state_dict_metadata  # type: ignore[assignment]

    def is_of_other_layout(self, model: nn.Module) -> bool:
        """Whether one process is to load by canonical names what ranks saved: its modules' own are not there."""
        is_foreign = self.group is None and self.apart and has_other_layout(model)
        return is_foreign and not self.of_model(model).keys() <= self.stored.keys()

    def of_model(self, model: nn.Module) -> Pieces:
        """Describe what the model shall get."""
        return model_pieces(model, tensor_parallel_rank=self.tensor_rank, apart=self.apart)

    def fill(self, pieces: Pieces, what: str) -> None:
        """Read every piece into its memory, after checking that all are there."""
        with together(self.group):
            problems = [problem for key, piece in pieces.items() for problem in self._misfits(key, piece.shape)]
            if problems:
                raise mismatch(str(self.source), what, problems)
        # One process stores numbers without an axis, ranks with one.
        state: dict[str, Any] = {
            key: piece.as_number() if not self.stored[key].size else piece for key, piece in pieces.items()
        }
        alone = self.group is None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(
                state,
                storage_reader=self.reader,
                planner=PieceLoader(flatten_state_dict=False),
                process_group=self.group,
                no_dist=alone,
            )

    def empty_state(self, model: nn.Module, optimizer: Optimizer, pieces: Pieces) -> dict[Tensor, dict[str, Tensor]]:
        """Make an optimizer's state, all zeros, with the entries that are stored of each parameter."""
        entries = {key.rpartition(".")[2] for key in self.stored.keys() - pieces.keys()}
        keys = self._keys(model)
        found: dict[Tensor, dict[str, Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for entry in entries:
                    size = self._size_of_state(keys[id(parameter)], entry)
                    if size is not None:
                        is_number = size.numel() == 1 and (entry == "step" or parameter.numel() > 1)
                        empty = torch.zeros(()) if is_number else torch.zeros_like(parameter)
                        found.setdefault(parameter, {})[entry] = empty
        return found

    def _keys(self, model: nn.Module) -> dict[int, str]:
        metadata = {"tensor_parallel_rank": self.tensor_rank, "singleton_local_shards": self.apart}
        state = model.sharded_state_dict(metadata=metadata)  # type: ignore[operator]
        return {id(entry.data): entry.key for entry in reversed(state.values())}

    def _size_of_state(self, key: str, entry: str) -> torch.Size | None:
        names = (f"{key}.{entry}", f"{key}_w.{entry}")
        return next((self.stored[name].size for name in names if name in self.stored), None)

    def _misfits(self, key: str, shape: tuple[int, ...]) -> list[str]:
        if key not in self.stored:
            return [f"{key} is missing"]
        stored = tuple(self.stored[key].size)
        if stored == shape or (not stored and shape == (1,)):
            return []
        return [f"{key} has shape {list(stored)}; the model's is {list(shape)}"]
