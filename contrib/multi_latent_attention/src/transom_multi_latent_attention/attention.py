"""Self-attention whose keys and values are made of one small latent a token, which is all that is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from transom.transformer import parts
from transom.transformer.module import Module

from transom_multi_latent_attention.sizes import LatentOptions, Sizes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import AttentionMask, TransformerConfig
    from transom.slots import Part, Parts
    from transom.slots.attention import AttentionBuilder, AttentionRequest, SelfAttention
    from transom.slots.kv_cache import LayerCache
    from transom.slots.linear import ColumnLinearBuilder, RowLinearBuilder
    from transom.slots.norm import NormBuilder

__all__ = ["MultiLatentAttention", "MultiLatentAttentionSubmodules"]


@dataclass(frozen=True)
class MultiLatentAttentionSubmodules:
    """Builders of the attention's parts.

    Args:
        linear_q: of the projection to queries, from the input or from their latent.
        linear_kv_down: of the projection to the latent of keys and values, and to the rotated part of the keys.
        kv_layernorm: of the latent's norm.
        linear_kv_up: of the projection from the latent to keys and values.
        core_attention: of softmax(q·k) v, its request bound.
        linear_proj: of the output projection.
        linear_q_down: of the projection to the queries' latent, where they have one.
        q_layernorm: of that latent's norm.
        rotary: of the position embedding, where the layer has one.
    """

    linear_q: ColumnLinearBuilder
    linear_kv_down: ColumnLinearBuilder
    kv_layernorm: NormBuilder
    linear_kv_up: ColumnLinearBuilder
    core_attention: Callable[..., Any]
    linear_proj: RowLinearBuilder
    linear_q_down: ColumnLinearBuilder | None = None
    q_layernorm: NormBuilder | None = None
    rotary: Callable[..., Any] | None = None


@final
class MultiLatentAttention(Module):
    """``proj(core([q, rope(q')], [k, rope(k')], v))`` with ``[k, v] = up(c)`` and ``[c, k'] = down(x)``.

    The latent c (after its norm) and the one rotated key k' are all that a token leaves behind: they are what caches
    hold. They are written into the memory that the config gives to keys and values of `num_query_groups` heads.

    Args:
        config: heads, biases, norms, positions, initialisation.
        submodules: builders of the parts.
        layer_number: counted from 1.
        tp_group: of one process; the card declares no tensor parallelism.
        options: sizes of latents and heads.

    Raises:
        ConfigError: caches of this config have no room for the latent; an odd part is to be rotated.

    Source: DeepSeek-AI 2024, DeepSeek-V2, section 2.1 and appendix C. Keys and values of all that is cached are made
    anew from the latents in every step, by whatever linear there is, rather than absorbed into the other projections.
    """

    Submodules = MultiLatentAttentionSubmodules
    Options = LatentOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MultiLatentAttentionSubmodules,
        layer_number: int,
        *,
        tp_group: ProcessGroup | None = None,
        options: LatentOptions | None = None,
    ) -> None:
        super().__init__(config)
        sizes = self.sizes = Sizes.of(config, options)
        shared: dict[str, Any] = {"config": config, "is_expert": False, "tp_group": tp_group}
        column = shared | {"init_method": config.init_method, "gather_output": False, "skip_bias_add": False}

        def linear(build: Any, width: int, output: int, name: str, *, bias: bool = False) -> Any:
            return build(width, output, bias=bias, tp_comm_buffer_name=name, **column)

        def norm(build: Any, width: int) -> Any:
            return build(config, hidden_size=width, eps=config.layernorm_epsilon)

        h, query = config.hidden_size, config.hidden_size
        self.linear_q_down = self.q_layernorm = None
        if sizes.query_latent is not None:
            query = sizes.query_latent
            self.linear_q_down = linear(submodules.linear_q_down, h, query, "q_down", bias=_has_qkv_bias(config))
            self.q_layernorm = norm(submodules.q_layernorm, query)
        self.linear_q = linear(submodules.linear_q, query, sizes.heads * sizes.key, "q")
        self.linear_kv_down = linear(
            submodules.linear_kv_down, h, sizes.latent + sizes.rotated, "kv_down", bias=_has_qkv_bias(config)
        )
        self.kv_layernorm = norm(submodules.kv_layernorm, sizes.latent)
        self.linear_kv_up = linear(submodules.linear_kv_up, sizes.latent, _kv_width(sizes), "kv_up")
        self.rotary = None if submodules.rotary is None else submodules.rotary(_of_rotated(config, sizes))
        self.core_attention = submodules.core_attention(
            _of_heads(config, sizes), layer_number=layer_number, softmax_scale=config.softmax_scale
        )
        self.linear_proj = submodules.linear_proj(
            sizes.heads * sizes.value,
            h,
            bias=config.add_bias_linear,
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_comm_buffer_name="proj",
            **shared,
        )

    @classmethod
    def supports(cls, request: AttentionRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        config = request.config
        for name in ("qk_layernorm", "qk_l2_norm", "attention_output_gate"):
            if getattr(config, name):
                yield f"it has no {name}"
        if "core_attn" in config.recompute_modules:
            yield "it does not recompute core_attn by itself; recompute_granularity: full recomputes whole layers"

    @classmethod
    def parts(cls, request: AttentionRequest, options: LatentOptions | None = None) -> Parts:
        """Say what is inside."""
        config, h = request.config, request.config.hidden_size
        sizes, bias = Sizes.of(config, options), _has_qkv_bias(config)
        found: dict[str, Part] = {}
        if sizes.query_latent is not None:
            found["linear_q_down"] = parts.column_linear(request, h, sizes.query_latent, bias=bias)
            found["q_layernorm"] = parts.norm(request, sizes.query_latent)
        found |= {
            "linear_q": parts.column_linear(request, sizes.query_latent or h, sizes.heads * sizes.key, bias=False),
            "linear_kv_down": parts.column_linear(request, h, sizes.latent + sizes.rotated, bias=bias),
            "kv_layernorm": parts.norm(request, sizes.latent),
            "linear_kv_up": parts.column_linear(request, sizes.latent, _kv_width(sizes), bias=False),
            "core_attention": _core_attention(request, sizes),
            "linear_proj": parts.row_linear(request, sizes.heads * sizes.value, h, bias=config.add_bias_linear),
        }
        if config.has_rope(request.layer_number):
            found["rotary"] = parts.rotary(replace(request, config=_of_rotated(config, sizes)))
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
            mask: who may attend to whom; `None` = everyone to everyone.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. A cache needs them.
            cache: of `num_query_groups` keys and values of size `kv_channels`, in whose place latents are kept.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.
        """
        query = self._query(hidden_states)  # [b, s, n, plain + rotated]
        latent, shared_key = self._latent(hidden_states)  # [b, s, latent], [b, s, 1, rotated]
        if self.rotary is not None:
            query, shared_key = self._rotate(query, shared_key, positions)
        if cache is not None:
            latent, shared_key, mask = self._remember(latent, shared_key, positions, cache, mask)
        key, value = self._key_and_value(latent, shared_key)
        attended = self.core_attention(query, key, value, mask=mask).flatten(2)  # [b, s, n, v] -> [b, s, n·v]
        output: tuple[Tensor, Tensor | None] = self.linear_proj(attended)
        return output

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        linears = (self.linear_proj, self.linear_kv_up, self.linear_kv_down, self.linear_q, self.linear_q_down)
        for linear in linears:
            if linear is not None:
                linear.backward_dw()

    def _query(self, hidden_states: Tensor) -> Tensor:
        if self.linear_q_down is not None and self.q_layernorm is not None:
            hidden_states = self.q_layernorm(self.linear_q_down(hidden_states)[0])
        query, _ = self.linear_q(hidden_states)
        return query.view(*query.shape[:2], self.sizes.heads, self.sizes.key)  # type: ignore[no-any-return]

    def _latent(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        down, _ = self.linear_kv_down(hidden_states)
        latent, shared_key = down.split_with_sizes([self.sizes.latent, self.sizes.rotated], dim=-1)
        return self.kv_layernorm(latent), shared_key.unsqueeze(2)

    def _rotate(self, query: Tensor, shared_key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        plain, rotated = query.split_with_sizes([self.sizes.plain, self.sizes.rotated], dim=-1)
        assert self.rotary is not None
        rotated, shared_key = self.rotary(rotated, shared_key, positions)
        return torch.cat([plain, rotated], dim=-1), shared_key

    def _key_and_value(self, latent: Tensor, shared_key: Tensor) -> tuple[Tensor, Tensor]:
        """Make keys ``[b, t, n, plain + rotated]`` and values ``[b, t, n, v]`` of latents ``[b, t, latent]``."""
        up, _ = self.linear_kv_up(latent)
        up = up.view(*up.shape[:2], self.sizes.heads, -1)
        plain, value = up.split_with_sizes([self.sizes.plain, self.sizes.value], dim=-1)
        return torch.cat([plain, shared_key.expand(-1, -1, self.sizes.heads, -1)], dim=-1), value

    def _remember(
        self,
        latent: Tensor,
        shared_key: Tensor,
        positions: Tensor | None,
        cache: LayerCache,
        mask: AttentionMask | None,
    ) -> tuple[Tensor, Tensor, AttentionMask]:
        """Write latents and rotated keys where keys and values would be, and read all that are held."""
        groups, d = self.sizes.cached
        kept = torch.cat([latent, shared_key.squeeze(2)], dim=-1)  # [b, s, latent + rotated]
        width = kept.shape[-1]
        filled = F.pad(kept, (0, 2 * groups * d - width)).view(*kept.shape[:2], 2, groups, d)
        # The cache refuses to be used without positions, and says so better than a check here would.
        first, second, _ = cache.update(filled[:, :, 0], filled[:, :, 1], positions)  # type: ignore[arg-type]
        held = torch.cat([first.flatten(2), second.flatten(2)], dim=-1)[..., :width]
        latent, rotated = held.split_with_sizes([self.sizes.latent, self.sizes.rotated], dim=-1)
        return latent, rotated.unsqueeze(2), cache.mask(mask)


def _kv_width(sizes: Sizes) -> int:
    return sizes.heads * (sizes.plain + sizes.value)


def _has_qkv_bias(config: TransformerConfig) -> bool:
    return config.add_bias_linear or config.add_qkv_bias


def _of_heads(config: TransformerConfig, sizes: Sizes) -> TransformerConfig:
    """The config of core attention: every head has keys of its own, of both parts."""
    return config.replace(num_query_groups=sizes.heads, kv_channels=sizes.key)


def _of_rotated(config: TransformerConfig, sizes: Sizes) -> TransformerConfig:
    """The config of the position embedding, which turns the whole of the rotated part."""
    return config.replace(num_query_groups=sizes.heads, kv_channels=sizes.rotated, rotary_percent=1.0)


def _core_attention(request: AttentionRequest, sizes: Sizes) -> Part:
    config = _of_heads(request.config, sizes)
    part = parts.core_attention(replace(request, config=config), request.layer_number)
    if sizes.value == sizes.key:
        return part
    asked: Any = part.request
    features = asked.features | {"value_head_size"}
    return replace(part, request=replace(asked, features=features, value_head_size=sizes.value))


if TYPE_CHECKING:
    _builder: AttentionBuilder = MultiLatentAttention

    def _is_a_self_attention(module: MultiLatentAttention) -> SelfAttention:
        return module
