"""One of several processes: runs every case of a folder on its rank and writes what came out.

``python on_ranks.py RANK SIZE FOLDER`` reads ``cases.json``, a list of cases, and ``NAME.RANK.pt``, what the rank is
given; it writes ``NAME.RANK.out.pt``. The ranks of a case's group are ``group`` in the case, `None` = all.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transom import TransformerConfig
from transom_parallel_linear.linear import ColumnParallelLinear, RowParallelLinear

TIMEOUT = timedelta(seconds=120)


class GatedMLP(nn.Module):
    """What a gated MLP does with its two linears: the gate is the first half."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        out, bias = self.fc1(x)
        gate, up = (out if bias is None else out + bias).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * up)


def make(case: dict[str, Any], group: dist.ProcessGroup) -> nn.Module:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=4,
        params_dtype=case["dtype"],
        tensor_model_parallel_size=group.size(),
        sequence_parallel=case["sequence_parallel"],
        delay_wgrad_compute=case["delay"],
    )
    shared = {
        "config": config,
        "init_method": nn.init.normal_,
        "is_expert": case["is_expert"],
        "tp_comm_buffer_name": None,
        "tp_group": group,
    }
    linears = [
        {"column": ColumnParallelLinear, "row": RowParallelLinear}[kind](*sizes, **arguments, **shared)
        for kind, sizes, arguments in case["linears"]
    ]
    return GatedMLP(*linears) if len(linears) == 2 else linears[0]


def run(case: dict[str, Any], group: dist.ProcessGroup, given: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(case["seed"])
    module = make(case, group)
    drawn_next = torch.rand(4)
    weights = {name: held(module, name).clone() for name, _ in module.named_parameters()}
    for name, bias in given["biases"].items():
        held(module, name).copy_(bias)
    shown = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in module.state_dict().items()}
    forward = torch.compile(module, fullgraph=True, backend=case["compile"]) if case["compile"] else module
    x = given["x"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
        out, bias = forward(x)
    whole = out if bias is None else out + bias
    (whole * given["direction"]).sum().backward()
    result = {"out": whole.detach(), "x_grad": x.grad, "weights": weights, "drawn_next": drawn_next, "shown": shown}
    if case["delay"]:
        result["early"] = [name for name, p in module.named_parameters() if "weight" in name and p.grad is not None]
        for linear in module.children() if isinstance(module, GatedMLP) else (module,):
            linear.backward_dw()
    return result | {"grads": {name: held(module, name, p.grad) for name, p in module.named_parameters()}}


def held(module: nn.Module, name: str, like: Tensor | None = None) -> Tensor:
    """The part of a parameter, or of a tensor like it, that this rank computes with."""
    linear, _, own = name.rpartition(".")
    owner = module.get_submodule(linear)
    return owner.shard.local(getattr(owner, own) if like is None else like).detach()


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=TIMEOUT)
    groups: dict[str, dist.ProcessGroup] = {}
    for case in json.loads((folder / "cases.json").read_text()):
        for ranks in case["groups"]:
            key = json.dumps(ranks)
            if key not in groups:
                groups[key] = dist.new_group(ranks, timeout=TIMEOUT)
        group = next(groups[json.dumps(ranks)] for ranks in case["groups"] if rank in ranks)
        torch.compiler.reset()
        try:
            result = run(case, group, torch.load(folder / f"{case['name']}.{rank}.pt"))
        except Exception:  # the other cases go on
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{case['name']}.{rank}.out.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
