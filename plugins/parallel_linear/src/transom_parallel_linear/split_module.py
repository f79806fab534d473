"""Modules whose parameters are split over tensor-parallel ranks, as state dicts and sharded state show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict, replica_of, sharded

from transom_parallel_linear.shard import Shard

__all__ = ["SplitModule"]


class SplitModule(ShardedModule):
    """A module of which all parameters that rest as DTensors are split alike.

    Args:
        shard: which part of them this rank holds.

    Example:
        >>> from transom.transformer.collectives import Ranks
        >>> module = SplitModule(Shard(Ranks.of(None)))
        >>> module.weight = module.shard.rest(torch.ones(4, 2), None)
        >>> module.sharded_state_dict()["weight"].global_shape
        (4, 2)
    """

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard = shard
        if shard.stride > 1 and shard.ranks.size > 1:
            self.register_state_dict_post_hook(_show)  # type: ignore[no-untyped-call]
        if shard.ranks.size > 1:
            self.register_load_state_dict_pre_hook(_hide)  # type: ignore[no-untyped-call]

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's part of every parameter that has the dimension along which the ranks split.

        Of stacked matrices these are the rows of the ranks' parts one after another; who stacked them knows better
        (`transom.transformer.mlp.apply_swiglu_sharded_factory`).
        """
        ranks, dim = self.shard.ranks, self.shard.dim
        replica = replica_of(metadata, tensor_parallel_rank=0)
        state: ShardedStateDict = {}
        for name, parameter in self.named_parameters():
            if parameter.dim() <= dim:
                continue
            key, part = prefix + name, torch.empty(self._part_shape(parameter), dtype=parameter.dtype, device="meta")
            shard = sharded(key, part, dim, ranks.rank, ranks.size, sharded_offsets, replica_id=replica)
            state[key] = replace(shard, data=parameter)
        return state

    def _part_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Shape of this tensor-parallel rank's part, however data parallelism splits it further."""
        if not isinstance(parameter, DTensor) or self.shard.ranks.size == 1:
            return tuple(parameter.shape)
        dim, stride = self.shard.dim, self.shard.stride
        shape = list(parameter.shape)
        if stride > 1:
            shape[dim : dim + 2] = [shape[dim] * shape[dim + 1]]
        shape[dim] //= self.shard.ranks.size
        return tuple(shape)


@torch.no_grad()
def _show(module: SplitModule, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = module.shard.shown(parameter)


@torch.no_grad()
def _hide(module: SplitModule, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = module.shard.hidden(state[prefix + name], parameter)
