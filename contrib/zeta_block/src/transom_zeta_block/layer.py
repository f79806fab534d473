"""The block as a layer: in a residual branch, its linears and its core attention filled by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from transom.transformer import parts
from transom.transformer.utils import torch_dtype

from transom_zeta_block.parallel_block import BlockShape, ParallelBlock

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import AttentionMask, TransformerConfig
    from transom.slots import Parts
    from transom.slots.bias_dropout_add import BiasDropoutAddBuilder
    from transom.slots.kv_cache import LayerCache
    from transom.slots.layer import Layer, LayerBuilder, LayerRequest
    from transom.slots.linear import ColumnLinearBuilder, RowLinearBuilder

__all__ = ["ZetaLayer", "ZetaLayerSubmodules", "ZetaOptions"]


@dataclass(frozen=True)
class ZetaOptions:
    """What the block has beyond the config.

    Args:
        qk_rmsnorm: give queries and keys unit length and learned scales.
        qk_scale: of the scores, with ``qk_rmsnorm``.
        ff_dropout: probability of dropping an inner activation of the feed-forward half in training.
        use_xpos: rotate with xPos decay; False = rotate alone.
        xpos_scale_base: of the decay, in tokens.
    """

    qk_rmsnorm: bool = False
    qk_scale: float = 8.0
    ff_dropout: float = 0.0
    use_xpos: bool = True
    xpos_scale_base: int = 512


@dataclass(frozen=True)
class ZetaLayerSubmodules:
    """Builders of the layer's parts.

    Args:
        fused_attn_ff_proj: of the projection to queries, key, value and feed-forward.
        core_attention: of n heads over one key/value head, its request bound.
        attn_out: of the merged heads' projection.
        ff_proj: of the feed-forward half's.
        bias_dropout_add: adds the block's output to the residual stream.
    """

    fused_attn_ff_proj: ColumnLinearBuilder
    core_attention: Callable[..., Any]
    attn_out: RowLinearBuilder
    ff_proj: RowLinearBuilder
    bias_dropout_add: BiasDropoutAddBuilder


@final
class ZetaLayer(ParallelBlock):
    """``x + block(x)``, where the block is attention and feed-forward side by side.

    Of the config it reads sizes, dropout, initialisation, the norm's epsilon, the residual's dtype, and what core
    attention reads (windows, soft-capping, sinks); it has one key/value head, bias-free LayerNorm, SwiGLU and rotary
    positions whatever the config says of those.

    Args:
        config: ``num_attention_heads`` of ``kv_channels`` each; ``ffn_hidden_size`` is the inner width.
        submodules: builders of the parts.
        layer_number: counted from 1 over the whole model.
        tp_group: of one process; the card declares no tensor parallelism.
        options: what is not in the config.
    """

    Submodules = ZetaLayerSubmodules
    Options = ZetaOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: ZetaLayerSubmodules,
        layer_number: int = 1,
        *,
        tp_group: ProcessGroup | None = None,
        options: ZetaOptions | None = None,
    ) -> None:
        options = ZetaOptions() if options is None else options
        shape = _shape(config, options)
        shared: dict[str, Any] = {
            "config": config,
            "bias": False,
            "skip_bias_add": True,
            "is_expert": False,
            "tp_group": tp_group,
        }
        row = shared | {"init_method": config.output_layer_init_method, "input_is_parallel": True}
        super().__init__(
            shape,
            fused_attn_ff_proj=submodules.fused_attn_ff_proj(
                shape.dim,
                sum(shape.fused),
                init_method=config.init_method,
                gather_output=False,
                tp_comm_buffer_name="fused_attn_ff",
                **shared,
            ),
            attend=submodules.core_attention(
                _of_one_group(config),
                layer_number=layer_number,
                softmax_scale=options.qk_scale if options.qk_rmsnorm else config.softmax_scale,
            ),
            attn_out=submodules.attn_out(shape.fused[0], shape.dim, tp_comm_buffer_name="attn_out", **row),
            ff_proj=submodules.ff_proj(shape.ff_inner, shape.dim, tp_comm_buffer_name="ff_out", **row),
            ff_dropout=options.ff_dropout,
            cached_heads=config.num_query_groups,
            dtype=torch_dtype(config.params_dtype),
        )
        self.bias_dropout_add = submodules.bias_dropout_add(config)
        self.hidden_dropout = config.hidden_dropout
        self.dtype = torch_dtype(config.params_dtype)
        is_wide = config.fp32_residual_connection
        self.residual_dtype = torch.promote_types(self.dtype, torch.float32) if is_wide else self.dtype

    @classmethod
    def supports(cls, request: LayerRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        config = request.config
        if config.kv_channels % 2:
            yield f"rotary positions turn pairs of components, and kv_channels is {config.kv_channels}"
        if config.recompute_granularity == "selective":
            yield "it recomputes none of its parts by itself; recompute_granularity: full recomputes it whole"

    @classmethod
    def parts(cls, request: LayerRequest) -> Parts:
        """Say what is inside."""
        shape, number = _shape(request.config, ZetaOptions()), request.layer_number
        with_one_group = replace(request, config=_of_one_group(request.config))
        return {
            "fused_attn_ff_proj": parts.column_linear(request, shape.dim, sum(shape.fused), bias=False),
            "core_attention": replace(parts.core_attention(with_one_group, number), path="attend"),
            "attn_out": parts.row_linear(request, shape.fused[0], shape.dim, bias=False),
            "ff_proj": parts.row_linear(request, shape.ff_inner, shape.dim, bias=False, path="ff_out.2"),
            "bias_dropout_add": parts.bias_dropout_add(request),
        }

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        context: Tensor | None = None,
        context_mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            hidden_states: ``[b, s, h]``.
            mask: who may attend to whom; `None` = everyone to everyone.
            context: handed on; the layer does not read it.
            context_mask: is not read.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            cache: of ``config.num_query_groups`` heads, of which one is read.

        Returns:
            the new hidden states ``[b, s, h]``, in float32 with ``config.fp32_residual_connection``; and the context.
        """
        x = hidden_states.to(self.residual_dtype)
        branch = self.branch(x.to(self.dtype), mask=mask, positions=positions, cache=cache)
        return self.bias_dropout_add(branch, None, x, self.hidden_dropout, self.training), context

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        linears: tuple[Any, ...] = (self.ff_out[2], self.attn_out, self.fused_attn_ff_proj)
        for linear in linears:
            linear.backward_dw()


def _shape(config: TransformerConfig, options: ZetaOptions) -> BlockShape:
    return BlockShape(
        dim=config.hidden_size,
        dim_head=config.kv_channels,
        heads=config.num_attention_heads,
        ff_inner=config.ffn_hidden_size,
        eps=config.layernorm_epsilon,
        qk_rmsnorm=options.qk_rmsnorm,
        use_xpos=options.use_xpos,
        xpos_scale_base=options.xpos_scale_base,
    )


def _of_one_group(config: TransformerConfig) -> TransformerConfig:
    return config.replace(num_query_groups=1)


if TYPE_CHECKING:
    _builder: LayerBuilder = ZetaLayer

    def _is_a_layer(module: ZetaLayer) -> Layer:
        return module
