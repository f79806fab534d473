"""What each of several processes does with a whole model."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import transom
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transom.transformer.partial_gradients import partial_gradients

PARALLEL = dict.fromkeys(("linear", "embedding", "loss"), "parallel_linear")


def spec(**changes: Any) -> dict[str, Any]:
    """A small decoder in float64, of which everything divides by 4 but the key/value heads."""
    config = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 24,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "position_embedding_type": "rope",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": 0.3,
        "params_dtype": "float64",
    }
    top = {name: changes.pop(name) for name in ("share_embeddings_and_output_weights",) if name in changes}
    return {"vocab_size": 40, "max_sequence_length": 8, "config": config | changes, **top}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(40, (3, 8), generator=generator)
    labels = torch.randint(40, (3, 8), generator=generator)
    return tokens, labels.masked_fill(torch.rand(3, 8, generator=generator) < 0.2, -100)


def run_model(
    described: dict[str, Any], group: dist.ProcessGroup | None, backend: str | None = None
) -> dict[str, Tensor]:
    """Compute logits, losses and all gradients in the shapes of one process; compiled in one graph, or not."""
    model = transom.build(described, seed=0, tp_group=group)
    torch.compiler.reset()
    forward = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    tokens, labels = batch()
    logits = forward(tokens)
    losses = forward(tokens, labels=labels)
    losses.sum().backward()
    for parameter in partial_gradients(model):
        dist.all_reduce(parameter.grad, group=group)
    return {"logits": logits.detach(), "losses": losses.detach()} | whole_gradients(model)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {f"gradient of {name}": whole(p.grad) for name, p in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.flatten(0, 1) if full.dim() == 3 or (full.dim() == 2 and full.shape[0] == 2) else full


def on_ranks(changes: dict[str, Any], backend: str | None, group: dist.ProcessGroup) -> dict[str, Tensor]:
    described = spec(tensor_model_parallel_size=group.size(), **changes) | {"use": PARALLEL}
    return run_model(described, group, backend)


def dropped(changes: dict[str, Any], group: dist.ProcessGroup) -> list[Tensor]:
    """What a residual branch and an attention drop on this rank, in two steps."""
    described = spec(tensor_model_parallel_size=group.size(), **changes) | {"use": PARALLEL}
    model = transom.build(described, seed=0, tp_group=group)
    seen: list[Tensor] = []
    layer = model.layers[0]
    layer.self_attention.core_attention.register_forward_hook(lambda m, i, out: seen.append(torch.rand(3)))
    layer.self_attn_bda.register_forward_hook(lambda m, i, out: seen.append(torch.rand(3)))
    torch.manual_seed(5)
    for _ in range(2):
        model(batch()[0]).sum().backward()
    return seen


def dropped_in_one_graph(group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Compute losses under dropout, and the same compiled in one graph."""
    changes = {"attention_dropout": 0.5, "hidden_dropout": 0.5, "sequence_parallel": True}
    described = spec(tensor_model_parallel_size=group.size(), **changes) | {"use": PARALLEL}
    model = transom.build(described, seed=0, tp_group=group)
    torch.compiler.reset()
    found = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(5 + group.rank())
        losses = forward(batch()[0], labels=batch()[1])
        losses.sum().backward()
        found.append(losses.detach())
    return found[0], found[1]
