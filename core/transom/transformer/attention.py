"""The attention half of a layer: projections, position embedding, core attention, output projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from torch import Tensor
from torch.compiler import is_compiling

from transom.errors import InputError
from transom.transformer import parts
from transom.transformer._attention_parts import (
    Drawing,
    SharedGroup,
    and_causal,
    attend,
    attend_held,
    check_ranks,
    is_step_rotary,
    make_column,
    make_proj,
    make_query_key_norms,
    make_rotary,
    query_key_norm_widths,
)
from transom.transformer.direct_attributes import submodule
from transom.transformer.enums import AttnMaskType
from transom.transformer.module import Module
from transom.transformer.rms_norm import with_remade_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots import Part, Parts
    from transom.slots.attention import AttentionBuilder, AttentionRequest, CachedCrossAttention, ContextCache
    from transom.slots.attention import CrossAttention as CrossAttentionInterface
    from transom.slots.attention import SelfAttention as SelfAttentionInterface
    from transom.slots.core_attention import CoreAttention
    from transom.slots.kv_cache import LayerCache
    from transom.slots.linear import ColumnLinearBuilder, Linear, RowLinearBuilder
    from transom.slots.norm import Norm, NormBuilder
    from transom.slots.rotary import Rotary
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "BoundCoreAttentionBuilder",
    "CrossAttention",
    "CrossAttentionSubmodules",
    "SelfAttention",
    "SelfAttentionSubmodules",
]


class BoundCoreAttentionBuilder(Protocol):
    """A `transom.slots.core_attention.CoreAttentionBuilder` to which the request is already bound."""

    def __call__(
        self, config: TransformerConfig, *, layer_number: int, softmax_scale: float | None = None
    ) -> CoreAttention:
        """Make the module."""
        ...


@dataclass(frozen=True)
class SelfAttentionSubmodules:
    """Builders of a self-attention's parts.

    Args:
        linear_qkv: of the projection to queries, keys and values.
        core_attention: of softmax(q·k) v, its request bound.
        linear_proj: of the output projection.
        q_layernorm: of the queries' norm, when ``config.qk_layernorm``.
        k_layernorm: of the keys' norm.
        rotary: of the position embedding, its request bound, where the layer has one.
    """

    linear_qkv: ColumnLinearBuilder
    core_attention: BoundCoreAttentionBuilder
    linear_proj: RowLinearBuilder
    q_layernorm: NormBuilder | None = None
    k_layernorm: NormBuilder | None = None
    rotary: Callable[[TransformerConfig], Rotary] | None = None


@final
class SelfAttention(Module):
    """``proj(core(q, k, v))`` with ``[q, k, v] = qkv(x)``; queries and keys may be normed and rotated.

    The projection's output is laid out by group of heads: for each of the g key/value heads its n/g queries, then (with
    ``config.attention_output_gate``) as many gates, then the key, then the value; each d wide.

    Args:
        config: heads, biases, norms, initialisation.
        submodules: builders of the parts.
        layer_number: counted from 1.
        attn_mask_type: `AttnMaskType.causal` and `padding_causal` make it causal whatever mask it is given: for an
            attention that stands alone. In a model, the mask object says so.
        tp_group: tensor-parallel process group, over which groups of heads are split.

    Raises:
        ParallelError: the groups cannot be split over the ranks.
        ConfigError: a norm or the rotary embedding is asked for and its builder is missing.

    Source: Vaswani et al. 2017, section 3.2.2; grouped heads: Ainslie et al. 2023; the layout is Megatron-core's.
    """

    Submodules = SelfAttentionSubmodules

    linear_qkv: Linear = submodule()
    q_layernorm: Norm | None = submodule()
    k_layernorm: Norm | None = submodule()
    rotary: Rotary | None = submodule()
    core_attention: CoreAttention = submodule()
    linear_proj: Linear = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        submodules: SelfAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.no_mask,
        *,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        ranks = check_ranks(config, tp_group)
        self.layer_number = layer_number
        self.shared = SharedGroup.of(ranks, config.num_query_groups)
        self.drawing = Drawing(ranks, config.attention_dropout, alike=not config.sequence_parallel)
        self.num_query_groups = max(1, config.num_query_groups // ranks.size)
        self.is_causal = attn_mask_type in (AttnMaskType.causal, AttnMaskType.padding_causal)
        self.head_size = config.kv_channels
        queries = config.num_attention_heads // config.num_query_groups
        self.group = [queries] * (2 if config.attention_output_gate else 1) + [1, 1]  # heads of each kind in a group
        self.group_size = sum(self.group)
        self.linear_qkv = make_column(
            submodules.linear_qkv,
            config,
            self.group_size * config.num_query_groups * config.kv_channels,
            bias=config.add_bias_linear or config.add_qkv_bias,
            name="qkv",
            tp_group=tp_group,
            gather_output=self.shared is not None,
        )
        self.q_layernorm, self.k_layernorm = make_query_key_norms(config, submodules)
        self.norm_first = config.qk_norm_before_rope
        self.norms_across_heads = config.qk_layernorm_across_heads
        self.rotary = make_rotary(config, submodules, layer_number)
        self.rotates_in_step = is_step_rotary(self.rotary)
        self.core_attention = submodules.core_attention(
            config, layer_number=layer_number, softmax_scale=config.softmax_scale
        )
        self.reads_pages = hasattr(self.core_attention, "attend_pages")
        self.recomputes_core = "core_attn" in config.recompute_modules
        self.linear_proj = make_proj(submodules.linear_proj, config, tp_group)

    @classmethod
    def parts(cls, request: AttentionRequest) -> Parts:
        """Say what is inside."""
        config, number = request.config, request.layer_number
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        width = (n * (2 if config.attention_output_gate else 1) + 2 * g) * d
        bias = config.add_bias_linear or config.add_qkv_bias
        found: dict[str, Part] = {
            "linear_qkv": parts.column_linear(request, config.hidden_size, width, bias=bias, reads_input=True),
            "core_attention": parts.core_attention(request, number),
            "linear_proj": parts.row_linear(request, n * d, config.hidden_size, bias=config.add_bias_linear),
        }
        if config.qk_layernorm:
            query_width, key_width = query_key_norm_widths(config)
            found |= {"q_layernorm": parts.norm(request, query_width), "k_layernorm": parts.norm(request, key_width)}
        if config.has_rope(number):
            found["rotary"] = parts.rotary(request)
        return found

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within a sequence.

        Args:
            hidden_states: ``[b, s, h]``.
            mask: who may attend to whom; `None` = everyone to everyone, or causal if the attention is.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. A cache needs them.
            cache: this layer's entry. Key j of the mask is then the one at position j.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.
        """
        if self.is_causal:
            mask = and_causal(mask)
        mixed, _ = with_remade_norm(self.linear_qkv, hidden_states)
        mixed = mixed if self.shared is None else self.shared.copied(mixed)
        b, s, _ = mixed.shape
        mixed = mixed.view(b, s, -1, self.group_size, self.head_size)  # [b, s, g, n/g (+ n/g) + 2, d]
        query, *gate, key, value = mixed.split_with_sizes(self.group, dim=3)  # [b, s, g, n/g or 1, d]
        if self.shared is not None:
            query, *gate, key, value = (self.shared.pick(kind) for kind in (query, *gate, key, value))
        # Heads stay in groups, for what makes new tensors makes them whole.
        if self.rotates_in_step and self.q_layernorm is None:
            query, key = self.rotary(query, key, positions, mask=mask)  # type: ignore[call-arg, misc]
        else:
            query, key = self._prepare(query, key, positions, mask)
        query, key, value = query.flatten(2, -2), key.flatten(2, -2), value.flatten(2, -2)  # -> [b, s, n or g, d]
        if self.rotates_in_step and value.requires_grad and not is_compiling():
            value = value.contiguous()  # a view would keep the unrotated queries and keys, too
        if cache is None:
            attended = attend(self, query, key, value, mask)
        else:
            attended = attend_held(self, query, key, value, mask, positions, cache)
        attended = attended.flatten(2)  # [b, s, n, d] -> [b, s, n·d]
        if gate:
            attended = attended * gate[0].flatten(2).sigmoid()
        return self.linear_proj(attended)  # -> [b, s, h]

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        self.linear_proj.backward_dw()
        self.linear_qkv.backward_dw()

    def _prepare(
        self, query: Tensor, key: Tensor, positions: Tensor | None, mask: AttentionMask | None
    ) -> tuple[Tensor, Tensor]:
        """Norm and rotate, in the config's order."""
        has_norms = self.q_layernorm is not None
        if has_norms and self.norm_first:
            query, key = self._norm(query, key)
        if self.rotates_in_step:
            query, key = self.rotary(query, key, positions, mask=mask)  # type: ignore[call-arg, misc]
        elif self.rotary is not None:
            query, key = self.rotary(query.flatten(2, 3), key.flatten(2, 3), positions)
        return self._norm(query, key) if has_norms and not self.norm_first else (query, key)

    def _norm(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_layernorm is None or self.k_layernorm is None:
            return query, key
        if self.norms_across_heads:  # [b, s, n, d] as [b, s, n·d]
            normed_query, normed_key = self.q_layernorm(query.flatten(2)), self.k_layernorm(key.flatten(2))
            return normed_query.view_as(query), normed_key.view_as(key)
        return self.q_layernorm(query), self.k_layernorm(key)


@dataclass(frozen=True)
class CrossAttentionSubmodules:
    """Builders of a cross-attention's parts.

    Args:
        linear_q: of the queries' projection.
        linear_kv: of the keys' and values' projection.
        core_attention: of softmax(q·k) v, its request bound.
        linear_proj: of the output projection.
    """

    linear_q: ColumnLinearBuilder
    linear_kv: ColumnLinearBuilder
    core_attention: BoundCoreAttentionBuilder
    linear_proj: RowLinearBuilder


@final
class CrossAttention(Module):
    """``proj(core(q, k, v))`` with ``q = q(x)`` and ``[k, v] = kv(y)``, where y is another sequence; no RoPE.

    The second projection's output is laid out by key/value head: the key, then the value, each d wide.

    Args:
        config: heads, biases, initialisation.
        submodules: builders of the parts.
        layer_number: counted from 1.
        attn_mask_type: as in `SelfAttention`.
        tp_group: tensor-parallel process group, over which groups of heads are split.

    Raises:
        ParallelError: the groups cannot be split over the ranks.

    Source: Vaswani et al. 2017, section 3.2.3; the layout is Megatron-core's, extended to groups of heads.
    """

    Submodules = CrossAttentionSubmodules

    linear_q: Linear = submodule()
    linear_kv: Linear = submodule()
    core_attention: CoreAttention = submodule()
    linear_proj: Linear = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.no_mask,
        *,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        ranks = check_ranks(config, tp_group)
        self.shared = SharedGroup.of(ranks, config.num_query_groups)
        self.drawing = Drawing(ranks, config.attention_dropout, alike=not config.sequence_parallel)
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        self.layer_number = layer_number
        self.is_causal = attn_mask_type in (AttnMaskType.causal, AttnMaskType.padding_causal)
        self.head_size = d
        self.linear_q = make_column(
            submodules.linear_q, config, n * d, bias=config.add_bias_linear, name="q", tp_group=tp_group
        )
        self.linear_kv = make_column(
            submodules.linear_kv,
            config,
            2 * g * d,
            bias=config.add_bias_linear,
            name="kv",
            tp_group=tp_group,
            gather_output=self.shared is not None,
        )
        self.core_attention = submodules.core_attention(
            config, layer_number=layer_number, softmax_scale=config.softmax_scale
        )
        self.recomputes_core = "core_attn" in config.recompute_modules
        self.linear_proj = make_proj(submodules.linear_proj, config, tp_group)

    @classmethod
    def parts(cls, request: AttentionRequest) -> Parts:
        """Say what is inside."""
        config = request.config
        h, bias = config.hidden_size, config.add_bias_linear
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        return {
            "linear_q": parts.column_linear(request, h, n * d, bias=bias, reads_input=True),
            "linear_kv": parts.column_linear(request, h, 2 * g * d, bias=bias),
            "core_attention": parts.core_attention(request, request.layer_number, cross=True),
            "linear_proj": parts.row_linear(request, n * d, h, bias=bias),
        }

    def forward(
        self,
        hidden_states: Tensor,
        *,
        key_value_states: Tensor | None,
        mask: AttentionMask | None = None,
        cache: ContextCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to another sequence.

        Args:
            hidden_states: ``[b, s, h]``, what asks.
            key_value_states: ``[b, t, h]``, what is read; `None` = what the cache holds.
            mask: which of the t tokens each of the s may read; `None` = all.
            cache: keeps the keys and values of what is read.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.
        """
        if self.is_causal:
            mask = and_causal(mask)
        query, _ = self.linear_q(hidden_states)
        query = query.view(*query.shape[:2], -1, self.head_size)  # [b, s, n·d] -> [b, s, n, d]
        if cache is not None:
            key, value = cache.read(key_value_states, self._read)
        elif key_value_states is not None:
            key, value = self._read(key_value_states)
        else:
            raise InputError(
                "cross-attention has nothing to read.",
                hint="pass key_value_states, or the context of the layer",
            )
        attended = attend(self, query, key, value, mask)
        return self.linear_proj(attended.flatten(2))  # [b, s, n, d] -> [b, s, h]

    def _read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is read, ``[b, t, h]``, to keys and values ``[b, t, g, d]``."""
        mixed, _ = self.linear_kv(states)
        mixed = mixed if self.shared is None else self.shared.copied(mixed)
        mixed = mixed.view(*mixed.shape[:2], -1, 2 * self.head_size)  # [b, t, 2·g·d] -> [b, t, g, 2·d]
        mixed = mixed if self.shared is None else mixed.narrow(2, self.shared.index, 1)
        key, value = mixed.chunk(2, dim=-1)
        return key, value

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        self.linear_proj.backward_dw()
        self.linear_kv.backward_dw()
        self.linear_q.backward_dw()


if TYPE_CHECKING:
    _self_attention: AttentionBuilder = SelfAttention
    _cross_attention: AttentionBuilder = CrossAttention

    def _are_attentions(
        own: SelfAttention, cross: CrossAttention
    ) -> tuple[SelfAttentionInterface, CrossAttentionInterface, CachedCrossAttention]:
        return own, cross, cross
