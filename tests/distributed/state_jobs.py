"""What each of several processes does with checkpoints of a small decoder in training."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import model_jobs
import torch
import torch.distributed as dist
import transom
from torch import Tensor, nn
from transom.checkpoint.manifest import Manifest
from transom.checkpoint.store import open_checkpoint, save_checkpoint
from transom.distributed import store
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.mesh import ParallelMesh
from transom.distributed.restore import load_sharded_model, load_sharded_training
from transom.distributed.saver import BackgroundSaver
from transom.distributed.sizes import ParallelSizes
from transom.distributed.store import ShardedState, save_sharded

FIELDS = {"share_embeddings_and_output_weights": True, "add_bias_linear": True, "qk_layernorm": True}
MESHES: dict[ParallelSizes, ParallelMesh] = {}


def mesh_of(sizes: dict[str, int] | None) -> ParallelMesh | None:
    """A mesh is made once for each sizes: its groups live as long as the processes."""
    if sizes is None:
        return None
    key = ParallelSizes(**sizes)
    if key not in MESHES:
        MESHES[key] = ParallelMesh.start(key)
    return MESHES[key]


def make(mesh: ParallelMesh | None, seed: int = 0, **changes: Any) -> tuple[nn.Module, torch.optim.AdamW]:
    tp = 1 if mesh is None else mesh.sizes.tp
    described = model_jobs.spec(
        tensor_model_parallel_size=tp, sequence_parallel=tp > 1 and changes.pop("sequence", False), **FIELDS | changes
    )
    used = {} if mesh is None else model_jobs.PARALLEL
    model = transom.build(described | {"use": used}, seed=seed, tp_group=None if mesh is None else mesh.tp_group)
    if mesh is not None:
        shard_over_data(model, mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model: nn.Module, optimizer: torch.optim.AdamW, mesh: ParallelMesh | None, number: int) -> tuple[float, float]:
    """One step on a batch of four sequences, of which a data-parallel rank takes its part."""
    tokens = torch.randint(40, (4, 8), generator=torch.Generator().manual_seed(number))
    if mesh is not None:
        tokens = tokens.chunk(mesh.sizes.dp)[mesh.place("dp")]
    loss = model(tokens, labels=tokens.roll(-1, 1)).mean()
    loss.backward()
    if mesh is None:
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    else:
        sum_partial_gradients(model, mesh)
        norm = GradientNorm(model, mesh).clip(0.5)
        loss = loss.detach().clone()
        dist.all_reduce(loss, group=mesh.group("dp"))
        loss /= mesh.sizes.dp
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), float(norm)


def manifest(number: int) -> Manifest:
    return Manifest(transom="0", torch="0", step=number, spec={}, lock={})


def save(folder: str, sizes: dict[str, int] | None, group: dist.ProcessGroup | None = None, **changes: Any) -> Any:
    """Train two steps and save; then one more. Say the losses and norms of all three."""
    mesh = mesh_of(sizes)
    model, optimizer = make(mesh, **changes)
    seen = [step(model, optimizer, mesh, number) for number in range(2)]
    if mesh is None:
        save_checkpoint(Path(folder), manifest(2), model, optimizer)
    else:
        save_sharded(Path(folder), manifest(2), ShardedState.of(model, optimizer, mesh), mesh)
    return [*seen, step(model, optimizer, mesh, 2)]


def save_on_ranks(folder: str, sizes: dict[str, int], changes: dict[str, Any], group: dist.ProcessGroup) -> Any:
    return save(folder, sizes, group, **changes)


def load(folder: str, sizes: dict[str, int] | None, group: dist.ProcessGroup | None = None, **changes: Any) -> Any:
    """Load into another model, and go on. Say the loss and norm of the third step, and all weights after loading."""
    mesh = mesh_of(sizes)
    model, optimizer = make(mesh, seed=99, **changes)
    load_sharded_training(open_checkpoint(folder), model, optimizer, mesh)
    weights = {name: canonical(p) for name, p in model.named_parameters()}
    return step(model, optimizer, mesh, 2), weights


def load_on_ranks(folder: str, sizes: dict[str, int], changes: dict[str, Any], group: dist.ProcessGroup) -> Any:
    return load(folder, sizes, group, **changes)


def canonical(parameter: Tensor) -> Tensor:
    return model_jobs.whole(parameter.detach())


def refuse(
    folder: str, sizes: dict[str, int], changes: dict[str, Any], group: dist.ProcessGroup
) -> tuple[str, str] | None:
    """Try to load; say which error came."""
    mesh = mesh_of(sizes)
    model, _ = make(mesh, **changes)
    try:
        load_sharded_model(open_checkpoint(folder), model, mesh)
    except transom.TransomError as error:
        return type(error).__name__, str(error)
    return None


def save_where_the_last_rank_cannot_write(folder: str, sizes: dict[str, int], group: dist.ProcessGroup) -> Any:
    """Try to save; say which error came."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    mesh = mesh_of(sizes)
    assert mesh is not None
    model, optimizer = make(mesh)
    write_tensors = store.write_tensors
    store.write_tensors = fail if dist.get_rank() == dist.get_world_size() - 1 else write_tensors
    try:
        save_sharded(Path(folder), manifest(4), ShardedState.of(model, optimizer, mesh), mesh)
    except transom.TransomError as error:
        return type(error).__name__, error.what
    finally:
        store.write_tensors = write_tensors
    return None


def save_in_background(folder: str, sizes: dict[str, int], group: dist.ProcessGroup) -> Any:
    """Train two steps, begin to save, and train on while it is written. Say the losses and norms."""
    mesh = mesh_of(sizes)
    assert mesh is not None
    model, optimizer = make(mesh)
    saver = BackgroundSaver(mesh)
    seen = [step(model, optimizer, mesh, number) for number in range(2)]
    saver.save(Path(folder), manifest(2), ShardedState.of(model, optimizer, mesh))
    seen += [step(model, optimizer, mesh, number) for number in range(2, 6)]
    saver.wait()
    try:  # the step has a checkpoint already
        saver.save(Path(folder), manifest(2), ShardedState.of(model, optimizer, mesh))
        saver.wait()
    except transom.TransomError as error:
        return seen, type(error).__name__, error.what
    return seen, None, None
