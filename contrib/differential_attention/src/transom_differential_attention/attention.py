"""Self-attention by the difference of two softmax maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom.transformer import parts
from transom.transformer.module import Module
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import AttentionMask, TransformerConfig
    from transom.slots import Part, Parts
    from transom.slots.attention import AttentionBuilder, AttentionRequest, SelfAttention
    from transom.slots.kv_cache import LayerCache
    from transom.slots.linear import ColumnLinearBuilder, RowLinearBuilder

__all__ = ["DifferentialAttention", "DifferentialAttentionSubmodules", "DifferentialScale", "HeadNorm"]


@dataclass(frozen=True)
class DifferentialAttentionSubmodules:
    """Builders of the attention's parts.

    Args:
        linear_qkv: of the projection to queries, keys and values.
        core_attention: of one softmax map times the values, its request bound; it serves both maps.
        linear_proj: of the output projection.
        rotary: of the position embedding, where the layer has one.
    """

    linear_qkv: ColumnLinearBuilder
    core_attention: Callable[..., Any]
    linear_proj: RowLinearBuilder
    rotary: Callable[..., Any] | None = None


@final
class DifferentialScale(nn.Module):
    """λ, the share of the second map that is taken off the first: ``exp(q1·k1) - exp(q2·k2) + λ_init``.

    Args:
        head_size: d, of the four learned vectors ``lambda_q1, lambda_k1, lambda_q2, lambda_k2``.
        layer_number: l, counted from 1: λ_init = 0.8 - 0.6 exp(-0.3 (l - 1)).
        dtype: of the vectors.

    Source: Ye et al. 2024, equations 2 and 3; the vectors start from N(0, 0.1).

    Example:
        >>> scale = DifferentialScale(head_size=4, layer_number=1, dtype=torch.float32)
        >>> round(float(scale.initial), 4)
        0.2
    """

    initial: Tensor

    def __init__(self, head_size: int, layer_number: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.value = 0.8 - 0.6 * math.exp(-0.3 * (layer_number - 1))
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            self.register_parameter(name, nn.Parameter(torch.empty(head_size, dtype=dtype)))
        # A number that differs by layer is a tensor in what is compiled, or each layer would be compiled anew.
        self.register_buffer("initial", torch.tensor(self.value, dtype=_wide(dtype)), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors."""
        for vector in self.parameters():
            nn.init.normal_(vector, std=0.1)

    def forward(self) -> Tensor:
        """Compute λ, 0-d, in float32 at least."""
        q1, k1, q2, k2 = (vector.to(self.initial.dtype) for vector in self.parameters())
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.initial

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moved or cast, λ_init is made anew: a cast would round it, and to_empty blank it.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.initial = torch.tensor(self.value, dtype=_wide(self.initial.dtype), device=self.initial.device)
        return self


@final
class HeadNorm(nn.Module):
    """Divides each head by its root mean square, with a learned scale that all heads share.

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
        """Map ``[..., width]``, in any floating dtype, to the scale's."""
        wide = x.to(_wide(x.dtype))
        return (F.rms_norm(wide, self.weight.shape, None, self.eps) * self.weight).to(self.weight.dtype)


@final
class DifferentialAttention(Module):
    """``proj(norm(softmax(q1·k1) v - λ softmax(q2·k2) v) (1 - λ_init))``: noise that both maps see cancels.

    Heads come in pairs: of the config's n heads, each half makes one of the two maps, so that there are n/2
    differential heads with values twice as wide, and as many parameters as in core's self-attention. The projection is
    laid out as there, by group; groups 2j and 2j + 1 give queries and keys of the two maps, and together the values.

    Args:
        config: heads, biases, initialisation, positions.
        submodules: builders of the parts.
        layer_number: counted from 1; λ grows with it.
        tp_group: of one process; the card declares no tensor parallelism.

    Source: Ye et al. 2024, Differential Transformer, equations 1 to 4.
    """

    Submodules = DifferentialAttentionSubmodules

    def __init__(
        self,
        config: TransformerConfig,
        submodules: DifferentialAttentionSubmodules,
        layer_number: int,
        *,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config)
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        self.num_query_groups, self.head_size = g, d
        self.group = [n // g, 1, 1]  # heads of each kind in a group
        shared: dict[str, Any] = {"config": config, "is_expert": False, "tp_group": tp_group}
        self.linear_qkv = submodules.linear_qkv(
            config.hidden_size,
            (n + 2 * g) * d,
            bias=_has_qkv_bias(config),
            init_method=config.init_method,
            gather_output=False,
            skip_bias_add=False,
            tp_comm_buffer_name="qkv",
            **shared,
        )
        self.rotary = None if submodules.rotary is None else submodules.rotary(config)
        self.core_attention = submodules.core_attention(
            _of_pairs(config), layer_number=layer_number, softmax_scale=config.softmax_scale
        )
        dtype = torch_dtype(config.params_dtype)
        self.scale = DifferentialScale(d, layer_number, dtype)
        self.head_norm = HeadNorm(2 * d, config.layernorm_epsilon, dtype)
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
        for name in ("num_attention_heads", "num_query_groups"):
            if getattr(config, name) % 2:
                yield f"heads come in pairs, and {name} is {getattr(config, name)}"
        for name in ("qk_layernorm", "qk_l2_norm", "attention_output_gate"):
            if getattr(config, name):
                yield f"it has no {name}"
        if "core_attn" in config.recompute_modules:
            yield "it does not recompute core_attn by itself; recompute_granularity: full recomputes whole layers"

    @classmethod
    def parts(cls, request: AttentionRequest) -> Parts:
        """Say what is inside."""
        config, number = request.config, request.layer_number
        n, g, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
        found: dict[str, Part] = {
            "linear_qkv": parts.column_linear(request, config.hidden_size, (n + 2 * g) * d, bias=_has_qkv_bias(config)),
            "core_attention": _core_attention(request),
            "linear_proj": parts.row_linear(request, n * d, config.hidden_size, bias=config.add_bias_linear),
        }
        return found | ({"rotary": parts.rotary(request)} if config.has_rope(number) else {})

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
            cache: of g keys and values of size d, as for `transom.transformer.attention.SelfAttention`.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.
        """
        query, key, value = self._project(hidden_states)
        if self.rotary is not None:
            query, key = self.rotary(query, key, positions)
        if cache is not None:
            # The cache refuses to be used without positions, and says so better than a check here would.
            key, value, _ = cache.update(key, value, positions)  # type: ignore[arg-type]
            mask = cache.mask(mask)
        first, second = (self.core_attention(*each, mask=mask) for each in self._pairs(query, key, value))
        difference = first - self.scale() * second  # [b, s, n/2, 2·d], in the scale's float32
        attended = self.head_norm(difference) * (1 - self.scale.initial)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(attended.to(hidden_states.dtype).flatten(2))
        return output

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        self.linear_proj.backward_dw()
        self.linear_qkv.backward_dw()

    def _project(self, hidden_states: Tensor) -> list[Tensor]:
        """Project to queries ``[b, s, n, d]``, keys and values ``[b, s, g, d]``."""
        mixed, _ = self.linear_qkv(hidden_states)
        b, s, _ = mixed.shape
        mixed = mixed.view(b, s, self.num_query_groups, -1, self.head_size)  # [b, s, g, n/g + 2, d]
        return [heads.flatten(2, 3) for heads in mixed.split_with_sizes(self.group, dim=3)]

    def _pairs(self, query: Tensor, key: Tensor, value: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Give queries ``[b, s, n/2, d]``, keys ``[b, t, g/2, d]`` and values ``[b, t, g/2, 2·d]`` of each map."""
        pairs = self.num_query_groups // 2
        queries = query.unflatten(2, (pairs, 2, -1)).unbind(3)  # type: ignore[no-untyped-call]
        keys = key.unflatten(2, (pairs, 2)).unbind(3)  # type: ignore[no-untyped-call]
        wide = value.unflatten(2, (pairs, 2)).flatten(3)  # type: ignore[no-untyped-call]
        return ((q.flatten(2, 3), k, wide) for q, k in zip(queries, keys, strict=True))


def _has_qkv_bias(config: TransformerConfig) -> bool:
    return config.add_bias_linear or config.add_qkv_bias


def _of_pairs(config: TransformerConfig) -> TransformerConfig:
    """The config of one map: half of the heads."""
    return config.replace(
        num_attention_heads=config.num_attention_heads // 2,
        num_query_groups=config.num_query_groups // 2,
        kv_channels=config.kv_channels,
    )


def _core_attention(request: AttentionRequest) -> Part:
    part = parts.core_attention(replace(request, config=_of_pairs(request.config)), request.layer_number)
    asked: Any = part.request
    features = asked.features | {"value_head_size"}
    return replace(part, request=replace(asked, features=features, value_head_size=2 * asked.head_size))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


if TYPE_CHECKING:
    _builder: AttentionBuilder = DifferentialAttention

    def _is_a_self_attention(module: DifferentialAttention) -> SelfAttention:
        return module
