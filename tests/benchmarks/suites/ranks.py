"""How cost grows with the ranks that share the work, where each has as much to do as one alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transom
from torch import nn
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.gradients import sum_partial_gradients
from transom.distributed.mesh import ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.testing.ranks import Ranks

from benchmarks.contenders.contender import TOLERANCES, check_results
from benchmarks.measure import CLOCKS, Step, interleaved, usable
from benchmarks.monolith import Shape
from benchmarks.settings import Settings
from benchmarks.suites.building import spec_of
from benchmarks.table import Table
from benchmarks.workloads import random_ids

__all__ = ["over_ranks"]

_SHAPE = Shape(vocab=512, hidden=256, layers=4, heads=8, groups=4, ffn=704, length=512)
_TOKENS = 512
_WAYS = {"data parallel": "dp", "tensor parallel": "tp"}
_SPLIT = dict.fromkeys(("linear", "embedding", "loss"), "parallel_linear")
_NOTE = (
    f"Width {_SHAPE.hidden}, {_SHAPE.layers} layers, float32, eager; a row of {_TOKENS} tokens for each rank, so that "
    "each has as much to do as one alone. Counted is the processor's time of all ranks together, which talk over gloo "
    "in one machine, and not the wait for a core or for another. A slope of 1 is growth with the work; what is above "
    "it is the ranks' talk, and what each does for itself however finely the weights are split."
)


def over_ranks(asked: Settings) -> Table:
    """Measure the training step of a model whose data, or whose weights, are split over processes.

    Raises:
        DifferentFunctionError: split and whole, the loss is not the same.
    """
    samples: dict[str, dict[str, Sequence[float]]] = {way: {} for way in _WAYS}
    for count in (1, 2) if asked.small else (1, 2, 4):
        for way, seconds in _together(count, asked.rounds).items():
            samples[way][str(count)] = seconds
    clock = replace(asked, clock_name="cpu")
    return Table(
        name="training step, over ranks",
        page="scaling",
        unit="s",
        samples=samples,
        axis="ranks",
        note=_NOTE,
        taken={"settings": f"{asked.rounds} rounds, {clock.described()['settings'].split(', ')[1]}, 1 thread a rank"},
    )


def _together(count: int, rounds: int) -> dict[str, list[float]]:
    """Give the seconds of each round of all ranks together, by the way of sharing."""
    ranks = Ranks((str(Path(__file__).parents[2]),), count)
    try:
        answers = ranks.run(measured, rounds)
    finally:
        ranks.close()
    for way in _WAYS:
        loss = sum(losses[way] for losses, _ in answers) / count
        check_results(f"loss, {way}", {"whole": _whole(count), f"{count} ranks": loss}, TOLERANCES[torch.float32])
    return {way: [sum(each) for each in zip(*(seconds[way] for _, seconds in answers), strict=True)] for way in _WAYS}


def _whole(count: int) -> torch.Tensor:
    ids = random_ids(_SHAPE.vocab, count, _TOKENS)
    model = transom.build(spec_of(_SHAPE), seed=0)
    with torch.no_grad():
        loss: torch.Tensor = model(ids, labels=ids.roll(-1, dims=1)).mean()
    return loss


def measured(rounds: int, group: torch.distributed.ProcessGroup) -> tuple[dict[str, Any], dict[str, Sequence[float]]]:
    """Run the steps as one of the ranks.

    Args:
        rounds: how often each is timed.
        group: of all ranks.

    Returns:
        the loss of each way's first step; and the processor's seconds of each round.
    """
    steps = {way: _step(name, group.size(), group.rank()) for way, name in _WAYS.items()}
    running, failed, losses = usable(steps)
    if failed:
        raise RuntimeError("; ".join(f"{way}: {why}" for way, why in failed.items()))
    return losses, dict(interleaved(running, rounds=rounds, clock=CLOCKS["cpu"]))


def _step(name: str, count: int, rank: int) -> Step:
    """Loss, gradients and AdamW, of this rank's row of data or of its share of every weight."""
    mesh = ParallelMesh.start(ParallelSizes(**{name: count}))
    spec = spec_of(_SHAPE)
    spec["config"]["tensor_model_parallel_size"] = mesh.sizes.tp
    model: nn.Module = transom.build(spec, seed=0, use=_SPLIT if name == "tp" else {}, tp_group=mesh.tp_group)
    shard_over_data(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    ids = random_ids(_SHAPE.vocab, count, _TOKENS)
    ids = ids[rank : rank + 1] if name == "dp" else ids

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(ids, labels=ids.roll(-1, dims=1)).mean()
        torch.autograd.backward(loss)
        sum_partial_gradients(model, mesh)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
