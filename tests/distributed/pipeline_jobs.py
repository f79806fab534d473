"""What each of several processes does with its stages of a small decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import model_jobs
import state_jobs
import torch
import torch.distributed as dist
import transom
from torch import nn
from transom.composition import build_stages
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.mesh import ParallelMesh
from transom.distributed.pipeline import Pipeline
from transom.distributed.stages import RankStages
from transom.errors import InputError, ParallelError

FIELDS = {"num_layers": 4, **state_jobs.FIELDS}
ROWS = 8


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(40, (ROWS, 8), generator=torch.Generator().manual_seed(number))
    return tokens, tokens.roll(-1, 1)


def alone(steps: int, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train in one process; give loss, norm and the loss of a batch after each step, and the parameters."""
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
        with torch.no_grad():
            seen.append(float(model(tokens, labels=labels).mean()))
    return seen, {name: p.detach() for name, p in model.named_parameters()}


def make(sizes: dict[str, int], virtual: int = 1, seed: int = 0, **changes: Any) -> Any:
    mesh = state_jobs.mesh_of(sizes)
    cut = {"virtual_pipeline_model_parallel_size": virtual} if virtual > 1 else {}
    cut |= {"tensor_model_parallel_size": mesh.sizes.tp, "pipeline_model_parallel_size": mesh.sizes.pp}
    described = model_jobs.spec(**FIELDS | changes | cut)
    planned = transom.plan(described | {"use": model_jobs.PARALLEL if mesh.sizes.tp > 1 else {}})
    stages = build_stages(planned, place=mesh.place("pp"), seed=seed, tp_group=mesh.tp_group)
    model = RankStages([shard_over_data(stage, mesh) for stage in stages], mesh)
    return mesh, model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(pipeline: Pipeline, optimizer: torch.optim.Optimizer, mesh: ParallelMesh, numbers: range) -> list[float]:
    """Train as `alone`, but each step on two halves of a batch, of which a data-parallel rank sees its part."""
    seen, model = [], pipeline.model
    norm = GradientNorm(model, mesh)

    def over_all(run: Callable[[Any, Any], Any], number: int) -> float:
        parts = [part.tensor_split(mesh.sizes.dp)[mesh.place("dp")].chunk(2) for part in batch(number)]
        total = sum(run(tokens, {"labels": labels}) for tokens, labels in zip(*parts, strict=True))
        dist.all_reduce(total, group=mesh.group("dp"))
        return float(total) / mesh.sizes.dp

    def look(tokens: torch.Tensor, labels: Any) -> torch.Tensor:
        losses = pipeline.losses(tokens, labels)
        mean = torch.zeros((), dtype=torch.float64) if losses is None else losses.mean() / 2
        dist.all_reduce(mean, group=mesh.group("pp"))
        return mean

    for number in numbers:
        model.train()
        seen.append(over_all(lambda tokens, labels: pipeline.run(tokens, labels, weight=0.5), number))
        model.sum_shared_gradients()
        sum_partial_gradients(model, mesh)
        seen.append(float(norm.clip(0.5)))
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        seen.append(over_all(look, number))
    return seen


def run(
    sizes: dict[str, int], virtual: int, schedule: str, changes: dict[str, Any], group: dist.ProcessGroup
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train three steps; give what was seen and this rank's parameters."""
    mesh, model, optimizer = make(sizes, virtual, **changes)
    pipeline = Pipeline(model, mesh, microbatches=2, schedule=schedule)
    seen = train(pipeline, optimizer, mesh, range(3))
    return seen, {name: state_jobs.canonical(p) for stage in model.stages for name, p in stage.named_parameters()}


def refusals(sizes: dict[str, int], group: dist.ProcessGroup) -> list[str]:
    """What pipelines say that cannot be made or run."""
    mesh, model, _ = make(sizes)
    tokens, labels = batch(0)
    tries = [
        lambda: Pipeline(model, mesh, microbatches=4, schedule="interleaved"),
        lambda: Pipeline(model, mesh, microbatches=4).run(tokens[:3], {"labels": labels[:3]}),
    ]
    said = []
    for attempt in tries:
        try:
            attempt()
        except ParallelError as error:
            said.append(error.what)
    return said


def stage_error(group: dist.ProcessGroup) -> str:
    """What a pipeline of one rank says of an error in the second step of its stage."""
    mesh, model, _ = make({"dp": group.size()})
    pipeline = Pipeline(model, mesh, microbatches=2, schedule="gpipe")
    tokens, labels = batch(0)
    pipeline.run(tokens, {"labels": labels})

    def broken(*received: Any, **named: Any) -> Any:
        raise InputError("the stage is broken.")

    model.stages[0].forward = broken
    try:
        pipeline.run(tokens, {"labels": labels})
    except InputError as error:
        return error.what
    return "nothing"
