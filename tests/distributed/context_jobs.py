"""What each of several processes does with its share of sequences."""

from __future__ import annotations

from typing import Any

import model_jobs
import torch
import torch.distributed as dist
import transom
from torch import Tensor
from transom import AttentionMask
from transom.distributed.mesh import ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.testing.pieces import local
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare
from transom.transformer.partial_gradients import partial_gradients

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 2, -1], [3] * 8])
PADDING = torch.tensor([[False] * 3 + [True] * 5, [True] * 6 + [False] * 2, [True] * 8])
MASKS: dict[str, dict[str, Any]] = {
    "packed": {"causal": True, "query_segments": SEGMENTS},
    "padding": {"causal": True, "key_padding": PADDING},
}


def mask_of(changes: dict[str, Any]) -> AttentionMask | None:
    kinds = changes.get("masks", ())
    return AttentionMask(**MASKS[kinds[0]]) if kinds else None


def described(changes: dict[str, Any], **sizes: int) -> dict[str, Any]:
    top = {name: changes[name] for name in ("masks", "use") if name in changes}
    config = {name: value for name, value in changes.items() if name not in top}
    return model_jobs.spec(**config, **sizes) | top


def run_whole(changes: dict[str, Any]) -> dict[str, Tensor]:
    """Compute what one process does with whole sequences; padding loses nothing."""
    model = transom.build(described(changes), seed=0)
    tokens, labels = model_jobs.batch()
    logits, losses = model(tokens, mask=mask_of(changes)), model(tokens, labels=labels, mask=mask_of(changes))
    losses.sum().backward()
    return {"logits": logits.detach(), "losses": losses.detach()} | model_jobs.whole_gradients(model)


def on_ranks(changes: dict[str, Any], tp: int, backend: str | None, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Compute the same with shares of them, and put the ranks' answers together."""
    mesh = ParallelMesh.start(ParallelSizes.of_world(group.size(), tp=tp, cp=group.size() // tp))
    assert mesh.cp_group is not None
    sizes = {"context_parallel_size": mesh.sizes.cp, "tensor_model_parallel_size": tp}
    model = transom.build(described(changes, **sizes), seed=0, tp_group=mesh.tp_group, cp_group=mesh.cp_group)
    torch.compiler.reset()
    forward = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    share = ContextShare(Ranks.of(mesh.cp_group))
    tokens, labels = (share.of(part) for part in model_jobs.batch())
    told = {"input_pos": share.positions(8), "mask": mask_of(changes)}
    logits, losses = forward(tokens, **told), forward(tokens, labels=labels, **told)
    losses.sum().backward()
    for parameter in partial_gradients(model):
        dist.all_reduce(local(parameter.grad), group=mesh.group("tp"))
    for parameter in model.parameters():
        dist.all_reduce(local(parameter.grad), group=mesh.cp_group)
    joined = share.whole(torch.cat([logits.double(), losses[..., None]], dim=-1).detach())
    return {"logits": joined[..., :-1], "losses": joined[..., -1]} | model_jobs.whole_gradients(model)


def state_of(group: dist.ProcessGroup) -> dict[str, tuple[int, ...]]:
    """Save a model whose core attention has parameters, load it into another, and say what was saved."""
    spec = described({"softmax_type": "learnable", "context_parallel_size": group.size()})
    model, other = (transom.build(spec, seed=seed, cp_group=group) for seed in (0, 1))
    with torch.no_grad():
        model.layers[0].self_attention.core_attention.core.softmax_offset.fill_(3.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.layers[0].self_attention.core_attention.core.softmax_offset, torch.full((4,), 3.0))
    assert model.sharded_state_dict().keys() == model.state_dict().keys()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
