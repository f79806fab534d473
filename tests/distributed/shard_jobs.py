"""What each of several processes says of its state, without being told which of them it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import transom
from torch import Tensor
from transom import ModuleSpec, TransformerConfig
from transom.transformer.position_bias import RelativePositionBias
from transom.transformer.sharding import ShardedTensor, ShardedTensorFactory

HEADS, BUCKETS = 4, 8
SPLIT = "parallel_linear"

Description = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Shape of the whole, where the part begins, and which copy it is."""


def describe(module: Any) -> dict[str, Description]:
    shards = {name: shard for name, shard in module.sharded_state_dict().items() if isinstance(shard, ShardedTensor)}
    return {name: (shard.global_shape, shard.global_offset, shard.replica_id) for name, shard in shards.items()}


def layer(group: dist.ProcessGroup | None) -> dict[str, Description]:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=HEADS,
        softmax_type="learnable",
        tensor_model_parallel_size=1 if group is None else group.size(),
    )
    attention = ModuleSpec("self_attention", submodules={"linear_qkv": SPLIT, "linear_proj": SPLIT})
    mlp = ModuleSpec("mlp", submodules={"linear_fc1": SPLIT, "linear_fc2": SPLIT})
    spec = ModuleSpec("transformer_layer", submodules={"self_attention": attention, "mlp": mlp})
    return describe(transom.build_module(spec, config, slot="layer", tp_group=group))


def decoder(group: dist.ProcessGroup) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """Say of a small decoder's parameters whether they are split, and which copy this rank holds."""
    small = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": HEADS, "ffn_hidden_size": 32}
    spec = {
        "vocab_size": 32,
        "max_sequence_length": 8,
        "config": small | {"position_embedding_type": "alibi", "tensor_model_parallel_size": group.size()},
        "use": dict.fromkeys(("linear", "embedding", "loss"), SPLIT),
    }
    built: Any = transom.build(spec, seed=0, tp_group=group)
    described = {}
    for key, shard in built.sharded_state_dict().items():
        whole = shard.build()[0] if isinstance(shard, ShardedTensorFactory) else shard
        described[key] = (max(whole.axis_fragmentations) > 1, whole.replica_id)
    return described


def bias(group: dist.ProcessGroup | None) -> tuple[dict[str, Tensor], dict[str, Description]]:
    """Compute the bias of this rank's heads and the gradient of its numbers."""
    torch.manual_seed(0)
    module = RelativePositionBias(HEADS, num_buckets=BUCKETS, max_distance=16, tp_group=group)
    drawn = module(3, 5)
    weights = torch.arange(drawn[0, 0].numel(), dtype=torch.float32).view(3, 5)
    (drawn * weights).sum().backward()
    weight = module.relative_attention_bias.weight
    assert weight.grad is not None
    parts = {"bias": drawn.detach(), "numbers": local(weight.detach()), "gradient": local(weight.grad)}
    return parts, describe(module)


def local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def refused(group: dist.ProcessGroup | None) -> tuple[str, dict[str, object]]:
    try:
        RelativePositionBias(3, tp_group=group)
    except transom.errors.ParallelError as error:
        return error.what, error.data
    raise AssertionError("3 heads were split")
