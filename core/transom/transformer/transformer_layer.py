"""One layer of a transformer: attention and MLP, each in a residual branch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from transom.transformer import parts
from transom.transformer.direct_attributes import submodule
from transom.transformer.identity_op import IdentityOp
from transom.transformer.module import Module
from transom.transformer.recompute import recomputed
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots import Part, Parts
    from transom.slots.bias_dropout_add import BiasDropoutAddBuilder
    from transom.slots.kv_cache import LayerCache
    from transom.slots.layer import Layer, LayerBuilder, LayerRequest
    from transom.slots.norm import NormBuilder
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["TransformerLayer", "TransformerLayerSubmodules"]

_FEEDS = {
    "input_layernorm": "self_attention",
    "pre_cross_attn_layernorm": "cross_attention",
    "pre_mlp_layernorm": "mlp",
}


@dataclass(frozen=True)
class TransformerLayerSubmodules:
    """Builders of a layer's parts, in the order in which they run; `None` = the identity.

    Args:
        input_layernorm: before self-attention.
        self_attention: with its own submodules bound.
        post_attention_layernorm: on self-attention's output, inside the branch.
        self_attn_bda: adds self-attention's output to the residual stream.
        pre_cross_attn_layernorm: before cross-attention.
        cross_attention: with its own submodules bound.
        cross_attn_bda: adds cross-attention's output.
        pre_mlp_layernorm: before the MLP.
        mlp: with its own submodules bound.
        post_mlp_layernorm: on the MLP's output, inside the branch.
        mlp_bda: adds the MLP's output.
    """

    input_layernorm: NormBuilder | None = None
    self_attention: Callable[..., Any] | None = None
    post_attention_layernorm: NormBuilder | None = None
    self_attn_bda: BiasDropoutAddBuilder | None = None
    pre_cross_attn_layernorm: NormBuilder | None = None
    cross_attention: Callable[..., Any] | None = None
    cross_attn_bda: BiasDropoutAddBuilder | None = None
    pre_mlp_layernorm: NormBuilder | None = None
    mlp: Callable[..., Any] | None = None
    post_mlp_layernorm: NormBuilder | None = None
    mlp_bda: BiasDropoutAddBuilder | None = None


@final
class TransformerLayer(Module):
    """Adds to the residual stream x: ``x + attn(norm(x))``, then ``x + cross(norm(x))``, then ``x + mlp(norm(x))``.

    With ``config.parallel_residual`` the MLP's norm reads the layer's input: ``x + attn(norm(x)) + mlp(norm(x))``.

    A place without a builder is the identity, so a layer without any returns its input, the same object.

    Args:
        config: sizes, norms, dropout, recompute.
        submodules: builders of the parts.
        layer_number: counted from 1 over the whole model.
        hidden_dropout: of the branches' outputs; `None` = the config's.
        tp_group: tensor-parallel process group.

    Source: Vaswani et al. 2017, with norms inside the branches (Xiong et al. 2020) and optionally at their ends too
    (Gemma 2), or only there (OLMo 2); the parallel form is that of GPT-NeoX (Black et al. 2022).

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
        >>> layer = TransformerLayer(config, TransformerLayerSubmodules())
        >>> x = torch.randn(1, 3, 8)
        >>> layer(x)[0] is x
        True
    """

    Submodules = TransformerLayerSubmodules

    input_layernorm: Any = submodule()
    self_attention: Any = submodule()
    post_attention_layernorm: Any = submodule()
    self_attn_bda: Any = submodule()
    pre_cross_attn_layernorm: Any = submodule()
    cross_attention: Any = submodule()
    cross_attn_bda: Any = submodule()
    pre_mlp_layernorm: Any = submodule()
    mlp: Any = submodule()
    post_mlp_layernorm: Any = submodule()
    mlp_bda: Any = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        layer_number: int = 1,
        hidden_dropout: float | None = None,
        *,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        self.layer_number = layer_number
        self.hidden_dropout = config.hidden_dropout if hidden_dropout is None else hidden_dropout
        self.dtype = torch_dtype(config.params_dtype)
        self.residual_dtype = torch.promote_types(self.dtype, torch.float32)
        self.wide_residual = config.fp32_residual_connection
        self.is_parallel = config.parallel_residual
        self.recomputes_norms = "layernorm" in config.recompute_modules
        self.recomputes_mlp = "mlp" in config.recompute_modules
        self.norms_as_is = not (self.recomputes_norms or self.wide_residual)

        def norm(builder: NormBuilder | None) -> Any:
            width, eps = config.hidden_size, config.layernorm_epsilon
            return IdentityOp() if builder is None else builder(config, hidden_size=width, eps=eps)

        def last_norm(builder: NormBuilder | None) -> Any:
            return None if builder is None else norm(builder)

        def part(builder: Callable[..., Any] | None, **arguments: Any) -> Any:
            return IdentityOp() if builder is None else builder(config, **arguments)

        self.input_layernorm = norm(submodules.input_layernorm)
        self.self_attention = part(submodules.self_attention, layer_number=layer_number, tp_group=tp_group)
        self.post_attention_layernorm = last_norm(submodules.post_attention_layernorm)
        self.self_attn_bda = part(submodules.self_attn_bda)
        self.pre_cross_attn_layernorm = norm(submodules.pre_cross_attn_layernorm)
        self.cross_attention = part(submodules.cross_attention, layer_number=layer_number, tp_group=tp_group)
        self.cross_attn_bda = part(submodules.cross_attn_bda)
        self.pre_mlp_layernorm = norm(submodules.pre_mlp_layernorm)
        self.mlp = part(submodules.mlp, tp_group=tp_group)
        self.post_mlp_layernorm = last_norm(submodules.post_mlp_layernorm)
        self.mlp_bda = part(submodules.mlp_bda)
        cross = (submodules.pre_cross_attn_layernorm, submodules.cross_attention, submodules.cross_attn_bda)
        self.reads_context = any(builder is not None for builder in cross)
        keeps = self.reads_context and "cache" in inspect.signature(self.cross_attention.forward).parameters
        self.keeps_context = keeps

    @classmethod
    def parts(cls, request: LayerRequest) -> Parts:
        """Say what is inside."""
        config, number = request.config, request.layer_number
        add = parts.bias_dropout_add(request)
        # What a norm that is recomputed by itself gives, and a residual stream that is narrowed behind it, lie between.
        can_feed = not config.fp32_residual_connection and "layernorm" not in config.recompute_modules
        found: dict[str, Part] = {
            "self_attention": parts.self_attention(request, number),
            "self_attn_bda": add,
            "mlp": parts.mlp(request, number, after_norm=config.pre_layernorm and can_feed),
            "mlp_bda": add,
        }
        if request.cross_attention:
            found |= {"cross_attention": parts.cross_attention(request, number), "cross_attn_bda": add}
        places = {
            "input_layernorm": config.pre_layernorm,
            "post_attention_layernorm": config.post_attention_layernorm,
            "pre_cross_attn_layernorm": config.pre_layernorm and request.cross_attention,
            "pre_mlp_layernorm": config.pre_layernorm,
            "post_mlp_layernorm": config.post_mlp_layernorm,
        }
        feeds = _FEEDS if can_feed else {}
        found |= {
            place: parts.norm(request, config.hidden_size, feeds=feeds.get(place))
            for place, is_wanted in places.items()
            if is_wanted
        }
        return {name: found[name] for name in cls.Submodules.__dataclass_fields__ if name in found}

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
            mask: of self-attention; `None` = everyone to everyone.
            context: ``[b, t, h]``, what cross-attention reads.
            context_mask: of cross-attention.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            cache: self-attention's cache entry; its attribute ``context``, if it has one, is cross-attention's, which
                may then be asked without a context.

        Returns:
            the new hidden states ``[b, s, h]``, in float32 with ``config.fp32_residual_connection``; and the context.
        """
        # A branch's output goes on without a name, so that its memory is free for the next one.
        x = hidden_states.to(self.residual_dtype) if self.wide_residual else hidden_states
        start = x if self.is_parallel else None
        x = self._add(
            x,
            self.self_attention(
                self.input_layernorm(x) if self.norms_as_is else self._normed(self.input_layernorm, x),
                mask=mask,
                positions=positions,
                cache=cache,
            ),
            self.post_attention_layernorm,
            self.self_attn_bda,
        )
        if self.reads_context:
            normed = self._normed(self.pre_cross_attn_layernorm, x)
            kept = self._kept_context(cache)
            branch = self.cross_attention(normed, key_value_states=context, mask=context_mask, **kept)
            x = self._add(x, branch, None, self.cross_attn_bda)
        branch = x if start is None else start
        branch = self.pre_mlp_layernorm(branch) if self.norms_as_is else self._normed(self.pre_mlp_layernorm, branch)
        branch = recomputed(self.mlp, branch) if self.recomputes_mlp and self.training else self.mlp(branch)
        return self._add(x, branch, self.post_mlp_layernorm, self.mlp_bda), context

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last part's first."""
        for part in (self.mlp, self.cross_attention, self.self_attention):
            if hasattr(part, "backward_dw"):
                part.backward_dw()

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        normed: Tensor = recomputed(norm, x) if self.recomputes_norms and self.training else norm(x)
        return normed.to(self.dtype) if self.wide_residual else normed

    def _kept_context(self, cache: LayerCache | None) -> dict[str, Any]:
        """Give cross-attention's entry to one that can keep what it reads; the others read it anew."""
        entry = getattr(cache, "context", None)
        return {"cache": entry} if self.keeps_context and entry is not None else {}

    def _add(self, residual: Tensor, branch: Any, post_norm: Any, add: Any) -> Any:
        """Close a residual branch; its last norm, if it has one, sees the bias too."""
        output, bias = branch if isinstance(branch, tuple) else (branch, None)
        if post_norm is not None:
            output, bias = post_norm(output if bias is None else output + bias), None
        return add(output, bias, residual, self.hidden_dropout, self.training)


if TYPE_CHECKING:
    _builder: LayerBuilder = TransformerLayer

    def _is_a_layer(module: TransformerLayer) -> Layer:
        return module
