"""What each of several processes does of a training that they share: save, and go on from what others saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_jobs
import numpy as np
import state_jobs
import torch.distributed as dist
from msgspec import structs
from transom.checkpoint.store import open_checkpoint
from transom.distributed.mesh import ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.specs.load import load_spec
from transom.specs.plan import plan
from transom.specs.spec import ModelSpec
from transom.training.corpus import split_corpus
from transom.training.objective import objective_of
from transom.training.team import Alone, RankTeam, Team
from transom.training.token_sequence import TokenSequence
from transom.training.trainer import Trainer
from transom.training.world import split_over

LENGTH = 8
SIZES = ("tp", "pp", "dp", "cp")
TRAIN = {
    "sequence_length": LENGTH,
    "batch_size": 8,
    "accumulate": 2,
    "steps": 10,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "grad_clip": 0.5,
    "eval_batches": 2,
}
TEAMS: dict[ParallelSizes, Team] = {}
Cut = dict[str, Any]
"""Sizes, and besides fields of the config and of ``train``."""


def small_llama() -> ModelSpec:
    """The packaged tiny-llama, smaller, in float64; everything divides by 4 but the key/value heads."""
    spec = load_spec("tiny-llama")
    small = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4, "kv_channels": 4}
    config = spec.config.replace(**small, init_method_std=0.3, params_dtype="float64")
    return structs.replace(spec, vocab_size=40, config=config, train=structs.replace(spec.train, **TRAIN))


def team_of(sizes: ParallelSizes) -> Team:
    """Ranks that share a training, made once for each sizes: their groups live as long as the processes."""
    if sizes not in TEAMS:
        TEAMS[sizes] = Alone() if sizes.ranks == 1 else RankTeam(ParallelMesh.start(sizes))
    return TEAMS[sizes]


def trainer_of(cut: Cut, *, seed: int = 0) -> Trainer:
    """A training of what these ranks have, as `transom train` sets it up."""
    sizes = ParallelSizes(**{name: cut[name] for name in SIZES if name in cut})
    whole, settings = small_llama(), {name: cut[name] for name in ("schedule", "microbatches") if name in cut}
    fields = {name: value for name, value in cut.items() if name not in (*SIZES, *settings)}
    if fields:
        fields |= {"pipeline_model_parallel_size": sizes.pp, "tensor_model_parallel_size": sizes.tp}
    used = whole.use | (model_jobs.PARALLEL if sizes.tp > 1 else {})
    train = structs.replace(whole.train, seed=seed, **settings)
    spec = structs.replace(whole, config=whole.config.replace(**fields), use=used, train=train)
    team = team_of(sizes)
    model = team.built(plan(split_over(spec, sizes)), seed, "cpu")
    numbers = np.random.default_rng(0).integers(40, size=LENGTH * 80)
    split = split_corpus(TokenSequence([numbers]), 0.2, LENGTH)
    return Trainer(model, train, split, sequence_length=LENGTH, team=team, objective=objective_of(spec, LENGTH))


def steps(trainer: Trainer, count: int) -> list[float]:
    """The losses and gradient norms of some steps, and the validation loss after them."""
    results = [trainer.train_step() for _ in range(count)]
    return [float(n) for result in results for n in (result.loss, result.gradient_norm)] + [trainer.validate()]


def save(folder: str, cut: Cut, group: dist.ProcessGroup | None = None) -> list[float]:
    """Train two steps and save; then one more."""
    trainer = trainer_of(cut)
    seen = steps(trainer, 2)
    trainer.team.save(
        Path(folder), state_jobs.manifest(2), trainer.model, trainer.optimizer, {}, afterwards=lambda: None
    )
    trainer.team.wait()
    return seen + steps(trainer, 1)


def load(folders: list[str], cut: Cut, group: dist.ProcessGroup | None = None) -> list[list[float]]:
    """Go on from each of several checkpoints by one step."""
    trainer = trainer_of(cut, seed=9)
    trainer.sampler.seed = 0
    seen = []
    for folder in folders:
        trainer.team.load(open_checkpoint(Path(folder)), trainer.model, trainer.optimizer, 0)
        trainer.step = 2
        seen.append(steps(trainer, 1))
    return seen
