"""Self-attention whose memory does not grow with the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom import AttentionMask
from transom.errors import MaskError
from transom.transformer import parts
from transom.transformer.module import Module
from transom.transformer.utils import torch_dtype

from transom_delta_attention.delta_rule import delta_rule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots import Part, Parts
    from transom.slots.attention import AttentionBuilder, AttentionRequest, SelfAttention
    from transom.slots.kv_cache import LayerCache
    from transom.slots.linear import ColumnLinearBuilder, RowLinearBuilder

__all__ = ["DeltaAttention", "DeltaAttentionSubmodules", "DeltaOptions", "HeadNorm"]

_MASKS = frozenset({"causal", "bottom_right", "padding", "positions"})


@dataclass(frozen=True)
class DeltaOptions:
    """How it is computed.

    Args:
        chunk: tokens that are computed together; it changes nothing but rounding, time and memory.
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; at least 1 is needed")


@dataclass(frozen=True)
class DeltaAttentionSubmodules:
    """Builders of the attention's parts.

    Args:
        linear_qkv: of the projection to queries, keys and values.
        linear_beta: of the projection to the strength of each correction.
        linear_proj: of the output projection.
        rotary: of the position embedding, where the layer has one.
    """

    linear_qkv: ColumnLinearBuilder
    linear_beta: ColumnLinearBuilder
    linear_proj: RowLinearBuilder
    rotary: Callable[..., Any] | None = None


@final
class HeadNorm(nn.Module):
    """Divides each head by its root mean square, with a learned scale that all heads share; in float32 at least.

    Args:
        width: of a head.
        eps: added to the mean square.
        dtype: of the scale.
    """

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a scale of ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., width]`` to the same shape and dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.rms_norm(wide, self.weight.shape, None, self.eps) * self.weight).to(x.dtype)


@final
class DeltaAttention(Module):
    """``proj(norm(o))`` with ``o = delta_rule(q, √β k, √β v)``; q and k have unit length, β is in (0, 1).

    Queries and keys are ``silu`` of their projections, divided by their lengths, and rotated where the config says so;
    ``β = sigmoid(beta(x))``, one for every key/value head. Projections are laid out as core's are.

    Args:
        config: heads, biases, initialisation, positions.
        submodules: builders of the parts.
        layer_number: changes nothing.
        tp_group: of one process; the card declares no tensor parallelism.
        options: how it is computed.

    Source: Schlag et al. 2021; Yang et al. 2024, section 3.1, without the short convolutions.
    """

    Submodules = DeltaAttentionSubmodules
    Options = DeltaOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: DeltaAttentionSubmodules,
        layer_number: int,
        *,
        tp_group: ProcessGroup | None = None,
        options: DeltaOptions | None = None,
    ) -> None:
        super().__init__(config)
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        self.chunk = (DeltaOptions() if options is None else options).chunk
        self.num_query_groups, self.head_size = g, d
        self.group = [n // g, 1, 1]  # heads of each kind in a group
        shared: dict[str, Any] = {"config": config, "is_expert": False, "tp_group": tp_group}
        column = shared | {"init_method": config.init_method, "gather_output": False, "skip_bias_add": False}
        self.linear_qkv = submodules.linear_qkv(
            config.hidden_size, (n + 2 * g) * d, bias=_has_qkv_bias(config), tp_comm_buffer_name="qkv", **column
        )
        self.linear_beta = submodules.linear_beta(
            config.hidden_size, g, bias=False, tp_comm_buffer_name="beta", **column
        )
        self.rotary = None if submodules.rotary is None else submodules.rotary(config)
        self.head_norm = HeadNorm(d, config.layernorm_epsilon, torch_dtype(config.params_dtype))
        self.linear_proj = submodules.linear_proj(
            n * d,
            config.hidden_size,
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
        for kind in sorted(request.masks - _MASKS):
            yield f"its memory holds all that came before, and cannot leave out what masks of kind {kind} hide"
        if config.window_of(request.layer_number) is not None:
            yield "its memory holds all that came before, without a window"
        if config.attention_dropout > 0 and request.context.mode == "train":
            yield f"it has no attention weights to drop, and attention_dropout is {config.attention_dropout}"
        absent = {
            "attn_logit_softcapping": config.attn_logit_softcapping is not None,
            "softmax_type": config.softmax_type != "vanilla",
            "qk_layernorm": config.qk_layernorm,
            "qk_l2_norm": config.qk_l2_norm,
            "attention_output_gate": config.attention_output_gate,
        }
        yield from (f"it has no {name}" for name, is_asked in absent.items() if is_asked)
        if config.position_embedding_type in ("alibi", "relative"):
            yield f"it adds no biases to scores, and position_embedding_type is {config.position_embedding_type}"

    @classmethod
    def parts(cls, request: AttentionRequest) -> Parts:
        """Say what is inside."""
        config, h = request.config, request.config.hidden_size
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        found: dict[str, Part] = {
            "linear_qkv": parts.column_linear(request, h, (n + 2 * g) * d, bias=_has_qkv_bias(config)),
            "linear_beta": parts.column_linear(request, h, g, bias=False),
            "linear_proj": parts.row_linear(request, n * d, h, bias=config.add_bias_linear),
        }
        return found | ({"rotary": parts.rotary(request)} if config.has_rope(request.layer_number) else {})

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
            mask: causal, with padding or without.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. A cache needs them.
            cache: of g keys and values of size d. All that it holds is gone through in each call.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.

        Raises:
            MaskError: the mask is not causal, or hides more than padding.
        """
        query, key, value = self._project(hidden_states)
        if self.rotary is not None:
            query, key = self.rotary(query, key, positions)
        strength = self.linear_beta(hidden_states)[0].sigmoid().sqrt().unsqueeze(-1)  # √β, [b, s, g, 1]
        key, value = key * strength, value * strength
        if cache is not None:
            # The cache refuses to be used without positions, and says so better than a check here would.
            key, value, _ = cache.update(key, value, positions)  # type: ignore[arg-type]
            assert positions is not None
            mask, places = cache.mask(mask), positions.expand(query.shape[:2])
            query = _spread(query, places, key.shape[1])
        padding = _padding_of(mask)
        if padding is not None:
            real = padding[:, : key.shape[1], None, None]
            key, value = key * real, value * real
        attended = delta_rule(query, key, value, chunk=self.chunk)
        if cache is not None:
            attended = _taken(attended, places)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(self.head_norm(attended).flatten(2))
        return output

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        for linear in (self.linear_proj, self.linear_beta, self.linear_qkv):
            linear.backward_dw()

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries ``[b, s, n, d]`` and keys ``[b, s, g, d]`` of unit length, and values ``[b, s, g, d]``."""
        mixed, _ = self.linear_qkv(hidden_states)
        b, s, _ = mixed.shape
        mixed = mixed.view(b, s, self.num_query_groups, -1, self.head_size)  # [b, s, g, n/g + 2, d]
        query, key, value = (heads.flatten(2, 3) for heads in mixed.split_with_sizes(self.group, dim=3))
        return _unit(F.silu(query)), _unit(F.silu(key)), value


def _padding_of(mask: AttentionMask | None) -> Tensor | None:
    """Give the keys that are no padding, bool ``[b, t]``; `None` = all."""
    features = frozenset() if mask is None else mask.features
    if mask is not None and mask.key_positions is not None:
        features |= {"key_positions"}
    if mask is None or not mask.causal or not features <= _MASKS:
        kinds = ", ".join(sorted(features - _MASKS)) or "everyone to everyone"
        raise MaskError(
            f"delta_attention sees what came before, and no mask can say otherwise; this one says {kinds}.",
            asked_by="DeltaAttention.forward(mask=...)",
            available=["causal", "padding"],
            hint="name another self_attention for models with such masks",
        )
    return mask.key_padding


def _spread(query: Tensor, places: Tensor, t: int) -> Tensor:
    """Put queries ``[b, s, n, d]`` at their places ``[b, s]`` among t; those at negative places go nowhere."""
    slots = torch.where(places < 0, t, places)[..., None, None].expand(query.shape)
    return query.new_zeros(query.shape[0], t + 1, *query.shape[2:]).scatter(1, slots, query)[:, :t]


def _taken(attended: Tensor, places: Tensor) -> Tensor:
    """Take what is at places ``[b, s]`` out of ``[b, t, n, d]``."""
    slots = places.clamp(min=0)[..., None, None].expand(*places.shape, *attended.shape[2:])
    return attended.gather(1, slots)


def _unit(x: Tensor) -> Tensor:
    """Divide each head by its Euclidean length, computed in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


def _has_qkv_bias(config: TransformerConfig) -> bool:
    return config.add_bias_linear or config.add_qkv_bias


if TYPE_CHECKING:
    _builder: AttentionBuilder = DeltaAttention

    def _is_a_self_attention(module: DeltaAttention) -> SelfAttention:
        return module
