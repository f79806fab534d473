"""How attentions make their parts: linears, norms of queries and keys, position embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import ConfigError, ParallelError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.linear import ColumnLinearBuilder, Linear, RowLinearBuilder
    from transom.slots.norm import Norm
    from transom.slots.rotary import Rotary
    from transom.transformer.attention import SelfAttentionSubmodules
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "UnitNorm",
    "check_ranks",
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
    return query_norm, submodules.k_layernorm(config, hidden_size=key_width, eps=eps)


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


def check_ranks(config: TransformerConfig, tp_group: ProcessGroup | None) -> int:
    """Refuse a tensor-parallel group over which the groups of heads cannot be split; return its size."""
    ranks = 1 if tp_group is None else tp_group.size()
    groups = config.num_query_groups
    if groups % ranks:
        raise ParallelError(
            f"{groups} key/value heads cannot be split over {ranks} tensor-parallel ranks.",
            hint="choose a tensor_model_parallel_size that divides num_query_groups",
            groups=groups,
            ranks=ranks,
        )
    return ranks


def make_column(
    builder: ColumnLinearBuilder,
    config: TransformerConfig,
    output_size: int,
    *,
    bias: bool,
    name: str,
    tp_group: ProcessGroup | None,
) -> Linear:
    """Make a projection out of the residual stream."""
    return builder(
        config.hidden_size,
        output_size,
        config=config,
        init_method=config.init_method,
        gather_output=False,
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
