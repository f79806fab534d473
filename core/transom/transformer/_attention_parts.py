"""How attentions make their parts: linears, norms of queries and keys, position embedding."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import ConfigError, ParallelError
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.collectives import Ranks, copy_to_ranks
from transom.transformer.partial_gradients import mark_partial_gradients
from transom.transformer.recompute import recomputed
from transom.transformer.split_random import drawn_apart

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.linear import ColumnLinearBuilder, Linear, RowLinearBuilder
    from transom.slots.norm import Norm
    from transom.slots.rotary import Rotary
    from transom.transformer.attention import CrossAttention, SelfAttention, SelfAttentionSubmodules
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "Drawing",
    "SharedGroup",
    "UnitNorm",
    "and_causal",
    "attend",
    "attend_held",
    "check_ranks",
    "is_step_rotary",
    "make_column",
    "make_proj",
    "make_query_key_norms",
    "make_rotary",
    "query_key_norm_widths",
]


@final
class UnitNorm(nn.Module):
    """Divides each head by its root mean square, without a scale."""

    def __init__(self, head_size: int, eps: float) -> None:
        super().__init__()
        self.head_size, self.eps = head_size, eps

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., d]`` to the same shape and dtype."""
        wide = x if x.dtype.itemsize >= 4 else x.float()
        return F.rms_norm(wide, (self.head_size,), None, self.eps).to(x.dtype)


def make_query_key_norms(
    config: TransformerConfig, submodules: SelfAttentionSubmodules
) -> tuple[Norm | None, Norm | None]:
    """Make the norms of queries and keys, or `None` where the config has none."""
    d, eps = config.kv_channels, config.layernorm_epsilon
    query_width, key_width = query_key_norm_widths(config)
    if config.qk_l2_norm:
        return UnitNorm(d, eps), UnitNorm(d, eps)
    if not config.qk_layernorm:
        return None, None
    if submodules.q_layernorm is None or submodules.k_layernorm is None:
        raise _missing_part("q_layernorm and k_layernorm", "qk_layernorm", True)
    query_norm = submodules.q_layernorm(config, hidden_size=query_width, eps=eps)
    key_norm = submodules.k_layernorm(config, hidden_size=key_width, eps=eps)
    if config.tensor_model_parallel_size > 1:  # each rank norms its own heads
        mark_partial_gradients(query_norm)
        mark_partial_gradients(key_norm)
    return query_norm, key_norm


def query_key_norm_widths(config: TransformerConfig) -> tuple[int, int]:
    """Give the widths over which queries and keys are normed: of a head, or of all heads of a token."""
    d = config.kv_channels
    if not config.qk_layernorm_across_heads:
        return d, d
    return config.num_attention_heads * d, config.num_query_groups * d


def make_rotary(config: TransformerConfig, submodules: SelfAttentionSubmodules, layer_number: int) -> Rotary | None:
    """Make the rotary embedding, or `None` where the layer has none."""
    if not config.has_rope(layer_number):
        return None
    if submodules.rotary is None:
        raise _missing_part("rotary", "position_embedding_type", config.position_embedding_type)
    return submodules.rotary(config)


def is_step_rotary(rotary: Rotary | None) -> bool:
    """Whether a rotary embedding is a `transom.slots.rotary.StepRotary`."""
    return rotary is not None and _takes_mask(type(rotary))


@lru_cache
def _takes_mask(kind: type[Rotary]) -> bool:
    return "mask" in inspect.signature(kind.forward).parameters


def and_causal(mask: AttentionMask | None) -> AttentionMask:
    """Let no token see a later one, whatever else a mask says."""
    if mask is None:
        return AttentionMask(causal=True)
    return mask if mask.causal else replace(mask, causal=True)


def attend(
    attention: SelfAttention | CrossAttention, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None
) -> Tensor:
    """Attend by an attention's core, recomputed and with draws of the rank's own as its config says."""
    is_plain = not (attention.recomputes_core or attention.drawing.dropout)
    if is_plain or not attention.training:
        return attention.core_attention(query, key, value, mask=mask)
    with attention.drawing(query.device, training=True):
        if attention.recomputes_core:
            return recomputed(attention.core_attention, query, key, value, mask=mask)
        return attention.core_attention(query, key, value, mask=mask)


def attend_held(
    attention: SelfAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask | None,
    positions: Tensor | None,
    cache: Any,
) -> Tensor:
    """Write new keys and values to a cache and attend to all that it holds: in place, where both can."""
    update = getattr(cache, "update_pages", None) if attention.reads_pages else None
    pages = None if update is None else update(key, value, positions)
    if pages is not None:
        core: Any = attention.core_attention
        attended: Tensor = core.attend_pages(query, pages, mask=cache.mask(mask))
        return attended
    # The cache refuses to be used without positions, and says so better than a check here would.
    key, value, _ = cache.update(key, value, positions)
    if attention.training:
        return attend(attention, query, key, value, cache.mask(mask))
    return attention.core_attention(query, key, value, mask=cache.mask(mask))


def _missing_part(places: str, field: str, value: object) -> ConfigError:
    return ConfigError(
        f"{field} is {value!r} and submodules has no {places}.",
        hint=f"give a builder for {places}, or change {field}",
        field=field,
        value=value,
        path=f"config.{field}",
        file=None,
        line=None,
    )


def check_ranks(config: TransformerConfig, tp_group: ProcessGroup | None) -> Ranks:
    """Refuse a tensor-parallel group over which the groups of heads cannot be split or shared; describe it."""
    ranks = Ranks.of(tp_group)
    groups, heads = config.num_query_groups, config.num_attention_heads
    if (groups % ranks.size and ranks.size % groups) or heads % ranks.size:
        raise ParallelError(
            f"{heads} query heads in {groups} groups cannot be split over {ranks.size} ranks.",
            hint="a number that divides num_attention_heads, and that divides num_query_groups or is a multiple of it",
            groups=groups,
            heads=heads,
            ranks=ranks.size,
        )
    return ranks


@dataclass(frozen=True)
class SharedGroup:
    """The place of a rank among more ranks than there are groups of heads.

    Each key/value head is then on several ranks, and each of these has a part of its queries. Weights are split evenly
    all the same: the projections are gathered and each rank picks what it needs.

    Args:
        ranks: p of them, a multiple of the number of groups.
        index: of this rank's group.
        part: which of the group's parts is this rank's.
        parts: over how many ranks a group's queries are split.

    Example:
        >>> SharedGroup.of(Ranks("", 4, 3), groups=2)
        SharedGroup(ranks=Ranks(name='', size=4, rank=3), index=1, part=1, parts=2)
    """

    ranks: Ranks
    index: int
    part: int
    parts: int

    @classmethod
    def of(cls, ranks: Ranks, groups: int) -> SharedGroup | None:
        """Say where a rank stands; `None` where no group is on several ranks."""
        parts = ranks.size // groups
        return cls(ranks, *divmod(ranks.rank, parts), parts) if parts > 1 else None

    def copied(self, projected: Tensor) -> Tensor:
        """Hand the gathered projections to ranks that pick different parts of them: their gradients add up."""
        return copy_to_ranks(projected, self.ranks)

    def pick(self, heads: Tensor) -> Tensor:
        """Of all groups' heads ``[b, s, g, m, d]`` pick this rank's: ``[b, s, 1, m/parts, d]``, or m of 1 whole."""
        own = heads[:, :, self.index : self.index + 1]
        width = own.shape[3] // self.parts
        return own.narrow(3, self.part * width, width) if width else own


@dataclass(frozen=True)
class Drawing:
    """How attention draws its dropout: each rank its own where they have other heads.

    Args:
        ranks: that share the heads.
        dropout: of attention weights.
        alike: their generators are in the same state; under sequence parallelism they are not, and nothing is to do.
    """

    ranks: Ranks
    dropout: float
    alike: bool = True

    def __call__(self, device: torch.device, training: bool) -> AbstractContextManager[None]:
        """Give the context to attend in."""
        apart = training and self.dropout > 0 and self.ranks.size > 1 and self.alike
        return drawn_apart(self.ranks, device) if apart else nullcontext()


def make_column(
    builder: ColumnLinearBuilder,
    config: TransformerConfig,
    output_size: int,
    *,
    bias: bool,
    name: str,
    tp_group: ProcessGroup | None,
    gather_output: bool = False,
) -> Linear:
    """Make a projection out of the residual stream."""
    return builder(
        config.hidden_size,
        output_size,
        config=config,
        init_method=config.init_method,
        gather_output=gather_output,
        bias=bias,
        skip_bias_add=False,
        is_expert=False,
        tp_comm_buffer_name=name,
        tp_group=tp_group,
    )


def make_proj(builder: RowLinearBuilder, config: TransformerConfig, tp_group: ProcessGroup | None) -> Linear:
    """Make the output projection."""
    return builder(
        config.num_attention_heads * config.kv_channels,
        config.hidden_size,
        config=config,
        init_method=config.output_layer_init_method,
        bias=config.add_bias_linear,
        input_is_parallel=True,
        skip_bias_add=True,
        is_expert=False,
        tp_comm_buffer_name="proj",
        tp_group=tp_group,
    )
