"""What each of several processes does with a small T5."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import model_jobs
import numpy as np
import state_jobs
import torch
import torch.distributed as dist
import transom
from torch import Tensor
from transom.checkpoint.store import open_checkpoint
from transom.distributed.mesh import ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.specs.load import load_spec
from transom.specs.plan import plan
from transom.training.corpus import split_corpus
from transom.training.objective import check_objective, objective_of
from transom.training.team import Alone, RankTeam, Team
from transom.training.token_sequence import TokenSequence
from transom.training.trainer import Trainer
from transom.training.world import split_over
from transom.transformer.partial_gradients import partial_gradients

CONFIG = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "ffn_hidden_size": 24,
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": "gelu_tanh",
    "position_embedding_type": "relative",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method_std": 0.3,
    "params_dtype": "float64",
}
TIED = "share_embeddings_and_output_weights"


def spec(**changes: Any) -> dict[str, Any]:
    """A T5 of two encoder and two decoder layers in float64; ``encoder`` holds changes of the encoder's config."""
    top = {name: changes.pop(name) for name in (TIED, "options", "masks", "train") if name in changes}
    encoder = changes.pop("encoder", None)
    made = {"model": "t5", "vocab_size": 40, "max_sequence_length": 32, "config": CONFIG | changes, **top}
    return made if encoder is None else made | {"encoder_config": CONFIG | changes | encoder}


def batch(rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is read, what of it is no padding, what is written, and labels."""
    generator = torch.Generator().manual_seed(3)
    read, written, labels = (torch.randint(40, (rows, n), generator=generator) for n in (12, 8, 8))
    kept = torch.arange(12) < torch.randint(5, 13, (rows, 1), generator=generator)
    return read, kept, written, labels.masked_fill(torch.rand(rows, 8, generator=generator) < 0.2, -100)


def run_model(
    described: dict[str, Any], group: dist.ProcessGroup | None, backend: str | None = None
) -> dict[str, Tensor]:
    """Compute logits, losses and all gradients in the shapes of one process; compiled in one graph, or not."""
    model = transom.build(described | {"masks": ["padding"]}, seed=0, tp_group=group)
    forward = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    read, kept, written, labels = batch()
    logits = forward(read, written, kept, None, kept)
    losses = forward(read, written, kept, None, kept, lm_labels=labels)
    losses.sum().backward()
    for parameter in partial_gradients(model):
        dist.all_reduce(parameter.grad, group=group)
    return {"logits": logits.detach(), "losses": losses.detach()} | model_jobs.whole_gradients(model)


def on_ranks(changes: dict[str, Any], backend: str | None, group: dist.ProcessGroup) -> dict[str, Tensor]:
    described = spec(tensor_model_parallel_size=group.size(), **changes)
    return run_model(described | {"use": model_jobs.PARALLEL}, group, backend)


LENGTH = 25  # odd: only context-parallel ranks need another
TRAIN = {
    "objective": "span_corruption",
    "noise_density": 0.25,
    "sequence_length": LENGTH,
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "grad_clip": 0.5,
    "eval_batches": 1,
}
TEAMS: dict[ParallelSizes, Team] = {}


def team_of(sizes: dict[str, int]) -> Team:
    """Ranks that share a training, made once for each sizes: its groups live as long as the processes."""
    key = ParallelSizes(**sizes)
    if key not in TEAMS:
        TEAMS[key] = Alone() if key.ranks == 1 else RankTeam(ParallelMesh.start(key))
    return TEAMS[key]


def trainer_of(sizes: dict[str, int], *, seed: int = 0, **changes: Any) -> Trainer:
    """A training of what these ranks have of a T5, as `transom train` sets it up; the seed is of the weights alone."""
    used = model_jobs.PARALLEL if sizes.get("tp", 1) > 1 else {}
    whole = load_spec(spec(**changes, train=TRAIN) | {"use": used})
    team = team_of(sizes)
    model = team.built(plan(split_over(whole, ParallelSizes(**sizes))), seed, "cpu")
    check_objective(whole, model)
    numbers = np.random.default_rng(0).integers(30, size=LENGTH * 40)
    split = split_corpus(TokenSequence([numbers]), 0.3, LENGTH)
    objective = objective_of(whole, LENGTH)
    return Trainer(model, whole.train, split, sequence_length=LENGTH, team=team, objective=objective)


def steps(trainer: Trainer, count: int) -> list[float]:
    """The losses and gradient norms of some steps."""
    return [float(number) for _ in range(count) for number in astuple(trainer.train_step())[:2]]


def save(folder: str, sizes: dict[str, int], changes: dict[str, Any], group: dist.ProcessGroup | None = None) -> Any:
    """Train two steps, validate and save; then one more step."""
    trainer = trainer_of(sizes, **changes)
    seen = [*steps(trainer, 2), trainer.validate()]
    trainer.team.save(
        Path(folder), state_jobs.manifest(2), trainer.model, trainer.optimizer, {}, afterwards=lambda: None
    )
    trainer.team.wait()
    return seen + steps(trainer, 1)


def load(
    folders: list[str], sizes: dict[str, int], changes: dict[str, Any], group: dist.ProcessGroup | None = None
) -> Any:
    """Go on from each of several checkpoints by one step."""
    trainer = trainer_of(sizes, seed=9, **changes)
    seen = []
    for folder in folders:
        trainer.team.load(open_checkpoint(Path(folder)), trainer.model, trainer.optimizer, 0)
        trainer.step = 2
        seen.append(steps(trainer, 1))
    return seen
