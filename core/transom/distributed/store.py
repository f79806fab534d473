"""Checkpoints that every rank writes its part of, and that any other number of ranks loads.

A folder like that of one process, but that the tensors lie in ``shards/``, a safetensors file a rank, and the state of
each rank's random generators in a file of its own. Reading executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from transom.checkpoint.atomic import new_folder, output_error
from transom.checkpoint.manifest import MANIFEST, FileRecord, Manifest
from transom.checkpoint.random_state import random_tensors
from transom.checkpoint.store import digest
from transom.checkpoint.tensors import write_tensors
from transom.distributed.agreement import together, told_by_first
from transom.distributed.mesh import ParallelMesh
from transom.distributed.pieces import Pieces, PieceSaver, model_pieces, optimizer_pieces
from transom.errors import OutputError

__all__ = ["SHARDS", "ShardedState", "random_file", "save_sharded"]

SHARDS = "shards"


def random_file(rank: int) -> str:
    """Name the file of a rank's random generators."""
    return f"random-{rank:05d}.safetensors"


@dataclass(frozen=True)
class ShardedState:
    """What a rank holds of a training at one step.

    Args:
        pieces: of model and optimizer.
        random: states of its generators.
    """

    pieces: Pieces
    random: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, mesh: ParallelMesh) -> ShardedState:
        """Describe it as it is now, without copying."""
        rank = mesh.place("tp")
        pieces = model_pieces(model, tensor_parallel_rank=rank)
        pieces |= optimizer_pieces(model, optimizer, tensor_parallel_rank=rank)
        return cls(pieces, random_tensors())

    def copied(self) -> ShardedState:
        """Copy it to the CPU's memory, so that training can go on while it is written."""

        def copy(block: Tensor) -> Tensor:
            return torch.empty_like(block, device="cpu", memory_format=torch.contiguous_format).copy_(block)

        pieces = {
            key: replace(piece, blocks=tuple((offset, copy(block)) for offset, block in piece.blocks))
            for key, piece in self.pieces.items()
        }
        return ShardedState(pieces, {name: tensor.clone() for name, tensor in self.random.items()})


def save_sharded(
    folder: Path,
    manifest: Manifest,
    state: ShardedState,
    mesh: ParallelMesh,
    files: Mapping[str, bytes] | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint together with all other ranks: it appears complete, or not at all.

    Args:
        folder: the folder of all checkpoints, which exists and which all ranks see.
        manifest: what it shall say of itself; `files` and `sizes` are filled in here.
        state: this rank's.
        mesh: of the ranks, which all call it.
        files: further files, such as a tokenizer; those of the first rank are written.
        group: all ranks, over which they agree; `None` = that of everything. While it is being written, nothing else
            may be said over it.

    Returns:
        the new folder, ``step-00000100`` for step 100.

    Raises:
        OutputError: it cannot be written, or the step has a checkpoint already; on every rank. What was there before is
            untouched.
        ParallelError: another rank failed, or is gone.
    """
    group = group or dist.group.WORLD
    assert group is not None
    target, first = folder / f"step-{manifest.step:08d}", dist.get_rank(group) == 0
    with ExitStack() as partly:  # on its way out by an error it removes what is half-written
        with together(group):
            partial = partly.enter_context(new_folder(target)) if first else None
        partial = told_by_first(partial, group)
        _write_pieces(partial / SHARDS, state.pieces, group, target)
        with together(group):
            own = _write_own(partial, state, files if first else None, group)
        records: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(records, own, group=group)
        with together(group):
            if first:
                _write_manifest(partial, manifest, {k: v for each in records for k, v in each.items()}, mesh)
            partly.close()
    return target


def _write_pieces(path: Path, pieces: Pieces, group: ProcessGroup, target: Path) -> None:
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        save(dict(pieces), storage_writer=writer, planner=PieceSaver(), process_group=group)
    except CheckpointException as error:  # on every rank, with what each of those that failed met
        rank, (reason, _) = min(error.failures.items())
        if isinstance(reason, OSError):
            raise output_error(target, reason) from error
        raise OutputError(f"cannot write {target}: rank {rank}: {reason}", path=target, rank=rank) from error


def _write_own(
    partial: Path, state: ShardedState, files: Mapping[str, bytes] | None, group: ProcessGroup
) -> dict[str, FileRecord]:
    """Write what only this rank writes; record it and its file of tensors."""
    rank = dist.get_rank(group)
    try:
        write_tensors(partial / random_file(rank), state.random)
        for name, contents in (files or {}).items():
            (partial / name).write_bytes(contents)
        # torch counts the files of shards from 1.
        shards = sorted((partial / SHARDS).glob(f"shard-{rank + 1:05d}-*"))
        written = [partial / random_file(rank), *(partial / name for name in files or {}), *shards]
        return {
            path.relative_to(partial).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=digest(path))
            for path in written
        }
    except OSError as error:
        raise output_error(partial, error) from error


def _write_manifest(partial: Path, manifest: Manifest, records: dict[str, FileRecord], mesh: ParallelMesh) -> None:
    complete = msgspec.structs.replace(manifest, files=dict(sorted(records.items())), sizes=asdict(mesh.sizes))
    try:
        (partial / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(complete)) + b"\n")
    except OSError as error:
        raise output_error(partial, error) from error
