"""One of several processes: trains small models with experts on its rank, case after case.

``python on_ranks.py RANK SIZE FOLDER`` reads ``FOLDER/cases.json``, a list of `Case` fields; each rank writes what it
saw of a case to ``FOLDER/NAME.RANK.json``, and all of them a checkpoint to ``FOLDER/NAME``.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transom
from torch import nn
from torch.optim import AdamW
from transom.checkpoint.manifest import Manifest
from transom.checkpoint.store import open_checkpoint, save_checkpoint
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.gradients import GradientNorm, sum_partial_gradients
from transom.distributed.mesh import ParallelMesh
from transom.distributed.restore import load_sharded_training
from transom.distributed.sizes import ParallelSizes
from transom.distributed.store import ShardedState, save_sharded
from transom.transformer.auxiliary_loss import auxiliary_losses

STEPS = 2


@dataclass
class Case:
    """A model, how it is split, and where it begins."""

    name: str
    sizes: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    after: str | None = None  # the folder of checkpoints that it goes on from


def spec(case: Case) -> dict[str, Any]:
    ranks = case.sizes.get("tp", 1)
    config = {
        "num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "ffn_hidden_size": 12, "params_dtype": "float64",
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "init_method_std": 0.3, "position_embedding_type": "rope",
        "tensor_model_parallel_size": ranks, **case.config,
    }  # fmt: skip
    use = {"mlp": "moe"} | (dict.fromkeys(("linear", "embedding", "loss"), "parallel_linear") if ranks > 1 else {})
    options = {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.1, "z_loss_coeff": 0.01, **case.options}
    return {"vocab_size": 40, "max_sequence_length": 8, "config": config, "use": use, "options": {"mlp": options}}


def begun(case: Case, mesh: ParallelMesh | None) -> tuple[nn.Module, AdamW]:
    model = transom.build(spec(case), seed=0 if case.after is None else 99, tp_group=mesh and mesh.tp_group)
    if mesh is not None:
        shard_over_data(model, mesh)
    optimizer = AdamW(model.parameters(), lr=0.01)
    if case.after is not None:
        load_sharded_training(open_checkpoint(case.after), model, optimizer, mesh)
    return model, optimizer


def step(model: nn.Module, optimizer: AdamW, mesh: ParallelMesh | None, number: int) -> list[float]:
    """Give the loss, the norm of the gradients, and the load-balancing loss."""
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
    return [float(loss.detach()), float(norm), float(auxiliary_losses(model)["load_balancing_loss"])]


def run(case: Case, folder: Path, mesh: ParallelMesh | None = None) -> list[list[float]]:
    """Train some steps, and save."""
    model, optimizer = begun(case, mesh)
    first = 0 if case.after is None else STEPS
    seen = [step(model, optimizer, mesh, number) for number in range(first, first + STEPS)]
    manifest = Manifest(transom="0", torch="0", step=first + STEPS, spec={}, lock={})
    (folder / case.name).mkdir(exist_ok=True)
    if mesh is None:
        save_checkpoint(folder / case.name, manifest, model, optimizer)
    else:
        save_sharded(folder / case.name, manifest, ShardedState.of(model, optimizer, mesh), mesh)
    return seen


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    meshes: dict[str, ParallelMesh] = {}
    for case in (Case(**fields) for fields in json.loads((folder / "cases.json").read_text())):
        sizes = ParallelSizes(**case.sizes)
        try:
            if str(sizes) not in meshes:
                meshes[str(sizes)] = ParallelMesh.start(sizes)
            seen: Any = run(case, folder, meshes[str(sizes)])
        except Exception:  # the other cases go on
            seen = traceback.format_exc()
        (folder / f"{case.name}.{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
