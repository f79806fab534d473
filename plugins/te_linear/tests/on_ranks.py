"""One of two processes: a gated MLP of two linears, over a stand-in of Transformer Engine.

``python on_ranks.py RANK FOLDER`` reads ``given.pt`` and writes ``RANK.pt``, what came out of every case.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transom import TransformerConfig
from transom.transformer.partial_gradients import partial_gradients
from transom_te_linear.linear import TeColumnLinear, TeRowLinear
from transom_te_linear.mlp import TeNormMLP
from transom_te_linear.norm_linear import TeNormLinear

H, FFN = 16, 24


def run(case: dict, given: dict, group: dist.ProcessGroup | None) -> dict:
    """Run forward and backward; on one process too, with ``group=None``."""
    config = TransformerConfig(
        num_layers=1, hidden_size=H, num_attention_heads=4, sequence_parallel=case["sequence"] and group is not None,
        tensor_model_parallel_size=1 if group is None else group.size(), delay_wgrad_compute=case["delay"],
    )  # fmt: skip
    shared = {"config": config, "init_method": nn.init.normal_, "bias": True, "is_expert": False,
              "tp_comm_buffer_name": "fc", "tp_group": group}  # fmt: skip
    torch.manual_seed(3)
    kind = TeNormLinear if case["norms"] else TeColumnLinear
    fc1 = kind(H, 2 * FFN, gather_output=False, skip_bias_add=case["skip"], stride=2, **shared)
    fc2 = TeRowLinear(FFN, H, input_is_parallel=True, skip_bias_add=case["skip"], **shared)
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    with torch.no_grad():
        fc1.bias.copy_(given["bias"].view(2, size, -1)[:, rank].flatten())
        fc2.bias.copy_(given["out_bias"])
    x = given["x"].chunk(size, dim=1)[rank] if config.sequence_parallel else given["x"]
    x = x.clone().requires_grad_()
    hidden, bias = fc1(x)
    gate, up = (hidden if bias is None else hidden + bias).chunk(2, dim=-1)
    out, bias = fc2(F.silu(gate) * up)
    out = out if bias is None else out + bias
    direction = given["direction"].chunk(size, dim=1)[rank] if config.sequence_parallel else given["direction"]
    (out * direction).sum().backward()
    for linear in (fc2, fc1):
        linear.backward_dw()
    sum_partial_gradients(fc1, group)
    grads = {f"{n}.{k}": p.grad for n, linear in (("fc1", fc1), ("fc2", fc2)) for k, p in linear.named_parameters()}
    weights = {"fc1": fc1.weight.detach(), "fc2": fc2.weight.detach()}
    shards = {**fc1.sharded_state_dict("fc1."), **fc2.sharded_state_dict("fc2.")}
    shapes = {name: (shard.global_shape, shard.global_offset) for name, shard in shards.items()}
    return {"out": out.detach(), "x": x.grad, "grads": grads, "weights": weights, "shapes": shapes}


def run_mlp(case: dict, given: dict, group: dist.ProcessGroup | None) -> dict:
    """Run the MLP that brings its norm along."""
    config = TransformerConfig(
        num_layers=1, hidden_size=H, num_attention_heads=4, sequence_parallel=case["sequence"] and group is not None,
        tensor_model_parallel_size=1 if group is None else group.size(), ffn_hidden_size=FFN,
        activation_func="silu", gated_linear_unit=True,
    )  # fmt: skip
    torch.manual_seed(3)
    mlp = TeNormMLP(config, tp_group=group)
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    with torch.no_grad():
        mlp.fc1_bias.copy_(given["bias"].view(2, size, -1)[:, rank].flatten())
        mlp.fc2_bias.copy_(given["out_bias"])
    cut = size if config.sequence_parallel else 1
    x, direction = (given[name].chunk(cut, dim=1)[rank if cut > 1 else 0] for name in ("x", "direction"))
    x = x.clone().requires_grad_()
    out, bias = mlp(x)
    out = out + bias
    (out * direction).sum().backward()
    sum_partial_gradients(mlp, group)
    grads = {name: parameter.grad for name, parameter in mlp.named_parameters()}
    shards = mlp.sharded_state_dict("mlp.")
    return {"out": out.detach(), "x": x.grad, "grads": grads, "keys": sorted(shards)}


def sum_partial_gradients(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Do what a trainer does with the gradients that the ranks have parts of."""
    for parameter in partial_gradients(module) if group is not None else ():
        dist.all_reduce(parameter.grad, group=group)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    loaded = torch.load(folder / "given.pt")
    found = [
        (run_mlp if case["kind"] == "mlp" else run)(case, loaded["given"], dist.group.WORLD) for case in loaded["cases"]
    ]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
