"""What each of several processes does with its stages of a small decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_jobs
import state_jobs
import torch
import torch.distributed as dist
import transom
from torch import nn
from transom.checkpoint.store import open_checkpoint
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.pipeline import Pipeline
from transom.distributed.restore import load_sharded_training
from transom.distributed.store import ShardedState, save_sharded
from transom.errors import ParallelError
from transom.models.decoder_stage import DecoderStage
from transom.transformer.pipeline_layout import stage_of

FIELDS = {"num_layers": 4, **state_jobs.FIELDS}


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(40, (4, 8), generator=torch.Generator().manual_seed(number))
    return tokens, tokens.roll(-1, 1)


def alone(steps: int, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = transom.build(model_jobs.spec(**FIELDS | changes), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    seen = []
    for number in range(steps):
        tokens, labels = batch(number)
        loss = model(tokens, labels=labels).mean()
        loss.backward()
        seen += [float(loss.detach()), float(nn.utils.clip_grad_norm_(model.parameters(), 0.5))]
        optimizer.step()
        optimizer.zero_grad()
    return seen, {name: p.detach() for name, p in model.named_parameters()}


def make(sizes: dict[str, int], virtual: int, seed: int = 0, **changes: Any) -> Any:
    mesh = state_jobs.mesh_of(sizes)
    tp, pp = mesh.sizes.tp, mesh.sizes.pp
    cut = {name: changes.pop(name) for name in ("pipeline_model_parallel_layout",) if name in changes}
    cut |= {"virtual_pipeline_model_parallel_size": virtual} if virtual > 1 else {}
    described = model_jobs.spec(**FIELDS | changes, tensor_model_parallel_size=tp)
    used = model_jobs.PARALLEL if tp > 1 else {}
    whole = transom.build(described | {"use": used}, seed=seed, tp_group=mesh.tp_group)
    config = whole.plan.config.replace(pipeline_model_parallel_size=pp, **cut)
    numbers = range(virtual) if virtual > 1 else (None,)
    stages = [DecoderStage(whole, stage_of(config, mesh.place("pp"), number)) for number in numbers]
    return mesh, stages, torch.optim.AdamW({p for stage in stages for p in stage.parameters()}, lr=0.01)


def train(pipeline: Pipeline, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    seen = []
    stages = nn.ModuleList(pipeline.stages)
    norm = GradientNorm(stages, pipeline.mesh)
    for number in numbers:
        seen.append(float(pipeline.run(*batch(number))))
        pipeline.sum_shared_gradients()
        sum_partial_gradients(stages, pipeline.mesh)
        seen.append(float(norm.clip(0.5)))
        optimizer.step()
        optimizer.zero_grad()
    return seen


def run(
    sizes: dict[str, int], virtual: int, schedule: str, changes: dict[str, Any], group: dist.ProcessGroup
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train three steps; give the losses and this rank's parameters."""
    mesh, stages, optimizer = make(sizes, virtual, **changes)
    pipeline = Pipeline(stages, mesh, microbatches=4, schedule=schedule)
    seen = train(pipeline, optimizer, range(3))
    return seen, {name: state_jobs.canonical(p) for stage in stages for name, p in stage.named_parameters()}


def save(folder: str, sizes: dict[str, int], group: dist.ProcessGroup) -> list[float]:
    mesh, (stage,), optimizer = make(sizes, 1)
    seen = train(Pipeline([stage], mesh, microbatches=4), optimizer, range(2))
    save_sharded(Path(folder), state_jobs.manifest(2), ShardedState.of(stage, optimizer, mesh), mesh)
    return seen


def load(folder: str, sizes: dict[str, int], group: dist.ProcessGroup) -> list[float]:
    mesh, (stage,), optimizer = make(sizes, 1, seed=9)
    load_sharded_training(open_checkpoint(folder), stage, optimizer, mesh)
    return train(Pipeline([stage], mesh, microbatches=4), optimizer, range(2, 3))


def refusals(sizes: dict[str, int], group: dist.ProcessGroup) -> list[str]:
    """What pipelines say that cannot be made or run."""
    mesh, (stage,), _ = make(sizes, 1)
    tokens, labels = batch(0)
    tries = [
        lambda: Pipeline([stage, stage], mesh, microbatches=4),
        lambda: Pipeline([stage], mesh, microbatches=4, schedule="interleaved"),
        lambda: Pipeline([stage], mesh, microbatches=1),
        lambda: Pipeline([stage], mesh, microbatches=4).run(tokens[:3], labels[:3]),
    ]
    said = []
    for attempt in tries:
        try:
            attempt()
        except ParallelError as error:
            said.append(error.what)
    return said
