"""From the config to requests: the one place where what a part must serve is derived.

Each function returns the `Part` for one place of an architecture implementation; its first argument is the request of
the implementation that has the place. Implementations of third parties use them as core's own do::

    @classmethod
    def parts(cls, request):
        config = request.config
        return {
            "up": column_linear(request, config.hidden_size, config.ffn_hidden_size, bias=False),
            "down": row_linear(request, config.ffn_hidden_size, config.hidden_size, bias=False),
        }
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from transom.slots.activation import ActivationRequest
from transom.slots.attention import AttentionRequest
from transom.slots.bias_dropout_add import BiasDropoutAddRequest
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.kv_cache import KVCacheRequest
from transom.slots.layer import LayerRequest
from transom.slots.linear import LinearRequest
from transom.slots.loss import LossRequest
from transom.slots.mlp import MLPRequest
from transom.slots.norm import NormRequest
from transom.slots.norm_linear import NormLinearRequest
from transom.slots.request import ArchitectureRequest, Part
from transom.slots.rotary import RotaryRequest

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "activation",
    "bias_dropout_add",
    "column_linear",
    "core_attention",
    "cross_attention",
    "embedding",
    "kv_cache",
    "layer",
    "loss",
    "mlp",
    "norm",
    "norm_linear",
    "rotary",
    "row_linear",
    "self_attention",
]


def column_linear(
    request: ArchitectureRequest,
    input_size: int,
    output_size: int,
    *,
    bias: bool,
    stride: int = 1,
    is_expert: bool = False,
    path: str | None = None,
    reads_input: bool = False,
) -> Part:
    """A linear whose output is split over the tensor-parallel ranks; sizes are over all ranks."""
    wanted = LinearRequest(
        context=request.context,
        features=_linear_features(request.config, is_expert),
        input_size=input_size,
        output_size=output_size,
        bias=bias,
        stride=stride,
        is_expert=is_expert,
    )
    return Part(slot="column_linear", request=wanted, path=path, reads_input=reads_input)


def norm_linear(norm: Part, linear: Part) -> Part:
    """A norm and the column linear that alone reads it, in one module at the linear's place."""
    assert isinstance(norm.request, NormRequest)
    assert isinstance(linear.request, LinearRequest)
    asked = {field.name: getattr(linear.request, field.name) for field in fields(linear.request)}
    asked["features"] = linear.request.features | norm.request.features
    return Part(slot="norm_linear", request=NormLinearRequest(**asked, eps=norm.request.eps), path=linear.path)


def row_linear(
    request: ArchitectureRequest,
    input_size: int,
    output_size: int,
    *,
    bias: bool,
    is_expert: bool = False,
    path: str | None = None,
) -> Part:
    """A linear whose input is split over the tensor-parallel ranks; sizes are over all ranks."""
    wanted = LinearRequest(
        context=request.context,
        features=_linear_features(request.config, is_expert),
        input_size=input_size,
        output_size=output_size,
        bias=bias,
        is_expert=is_expert,
    )
    return Part(slot="row_linear", request=wanted, path=path)


def embedding(
    request: ArchitectureRequest, num_embeddings: int, embedding_dim: int, *, path: str | None = None
) -> Part:
    """A table of ``num_embeddings`` vectors."""
    wanted = EmbeddingRequest(
        context=request.context,
        features=_split_features(request.config),
        num_embeddings=num_embeddings,
        embedding_dim=embedding_dim,
    )
    return Part(slot="embedding", request=wanted, path=path)


def norm(request: ArchitectureRequest, hidden_size: int, *, path: str | None = None, feeds: str | None = None) -> Part:
    """The config's norm over the last dimension, ``hidden_size`` wide; ``feeds`` as in `Part`."""
    config = request.config
    features = {config.normalization.lower()} | _when({"zero_centered_gamma": config.layernorm_zero_centered_gamma})
    wanted = NormRequest(
        context=request.context, features=frozenset(features), hidden_size=hidden_size, eps=config.layernorm_epsilon
    )
    return Part(slot="norm", request=wanted, path=path, feeds=feeds)


def activation(request: ArchitectureRequest) -> Part:
    """The config's activation, gate included, as a module of its own."""
    config = request.config
    optional = {
        "gated": config.gated_linear_unit,
        "clamp": config.activation_func_clamp_value is not None,
        "glu_offset": config.gated_linear_unit and config.glu_linear_offset != 0,
    }
    wanted = ActivationRequest(
        context=request.context,
        features=frozenset({config.activation_func}) | _when(optional),
        function=config.activation_func,
        gated=config.gated_linear_unit,
    )
    return Part(slot="activation", request=wanted)


def rotary(request: ArchitectureRequest) -> Part:
    """The config's rotary position embedding."""
    config = request.config
    rotary_dim = int(config.kv_channels * config.rotary_percent)
    scaling = config.rope_scaling.type if config.rope_scaling else None
    features = {"interleaved" if config.rotary_interleaved else "half_split"}
    features |= {scaling} if scaling else set()
    features |= {"linear"} if config.seq_len_interpolation_factor is not None else set()
    wanted = RotaryRequest(
        context=request.context,
        features=frozenset(features) | _when({"partial": config.rotary_percent < 1}),
        head_size=config.kv_channels,
        rotary_dim=rotary_dim,
    )
    return Part(slot="rotary", request=wanted)


def core_attention(request: ArchitectureRequest, layer_number: int, *, cross: bool = False) -> Part:
    """The core attention of a layer, counted from 1; heads are those of one rank."""
    config = request.config
    heads, groups = config.num_attention_heads, config.num_query_groups
    ranks = config.tensor_model_parallel_size
    window = None if cross else config.window_of(layer_number)
    trains = request.context.mode == "train"
    optional = {
        "window": window is not None,
        "softcap": config.attn_logit_softcapping is not None,
        "sink_off_by_one": config.softmax_type == "off-by-one",
        "sink_learnable": config.softmax_type == "learnable",
        "dropout": config.attention_dropout > 0 and trains,
        "gqa": groups != heads,
        "cross": cross,
        "alibi": config.position_embedding_type == "alibi" and not cross,
        ("bias_grad" if trains else "bias"): config.position_embedding_type == "relative" and not cross,
    }
    masks = request.masks - {"causal", "bottom_right", "positions", "prefix"} if cross else request.masks
    wanted = CoreAttentionRequest(
        context=request.context,
        features=frozenset(masks) | _when(optional) | _context_features(request, window is not None),
        num_attention_heads=heads // ranks,
        num_query_groups=max(1, groups // ranks),
        head_size=config.kv_channels,
        value_head_size=config.kv_channels,
        window=window,
        softcap=config.attn_logit_softcapping,
        dropout=config.attention_dropout,
    )
    return Part(slot="core_attention", request=wanted)


def bias_dropout_add(request: ArchitectureRequest) -> Part:
    """The end of a residual branch."""
    dropout = request.config.hidden_dropout
    features = _when({"dropout": dropout > 0 and request.context.mode == "train"})
    wanted = BiasDropoutAddRequest(context=request.context, features=features, dropout=dropout)
    return Part(slot="bias_dropout_add", request=wanted)


def loss(request: ArchitectureRequest, vocab_size: int) -> Part:
    """Token cross-entropy over ``vocab_size`` ids."""
    config = request.config
    optional = {
        "z_loss": config.z_loss > 0,
        "softcap": config.final_logit_softcapping is not None,
    }
    wanted = LossRequest(
        context=request.context,
        features=_when(optional) | _split_features(config),
        vocab_size=vocab_size,
        z_loss=config.z_loss,
        softcap=config.final_logit_softcapping,
    )
    return Part(slot="loss", request=wanted)


def kv_cache(request: ArchitectureRequest, *, path: str = "cache") -> Part:
    """The key/value cache of a stack's self-attentions, made when a model's caches are set up; for inference alone."""
    config = request.config
    wanted = KVCacheRequest(
        context=replace(request.context, mode="infer"),
        windows=tuple(config.window_of(number) for number in range(1, config.num_layers + 1)),
        num_query_groups=max(config.num_query_groups // config.tensor_model_parallel_size, 1),
        head_size=config.kv_channels,
        value_head_size=config.kv_channels,
    )
    return Part(slot="kv_cache", request=wanted, path=path)


def mlp(
    request: ArchitectureRequest,
    layer_number: int,
    *,
    is_expert: bool = False,
    input_size: int | None = None,
    ffn_hidden_size: int | None = None,
    after_norm: bool = False,
) -> Part:
    """The MLP of a layer, counted from 1; ``after_norm``: the config's norm stands before it, and feeds it alone."""
    wanted = MLPRequest(
        context=request.context,
        features=_architecture_features(request),
        config=request.config,
        masks=request.masks,
        layer_number=layer_number,
        is_expert=is_expert,
        input_size=input_size,
        ffn_hidden_size=ffn_hidden_size,
        after_norm=after_norm,
    )
    return Part(slot="mlp", request=wanted)


def self_attention(request: ArchitectureRequest, layer_number: int) -> Part:
    """The self-attention of a layer, counted from 1."""
    return _attention(request, layer_number, "self_attention")


def cross_attention(request: ArchitectureRequest, layer_number: int) -> Part:
    """The cross-attention of a layer, counted from 1."""
    return _attention(request, layer_number, "cross_attention")


def layer(
    request: ArchitectureRequest, layer_number: int, *, cross_attention: bool = False, path: str | None = None
) -> Part:
    """One layer of a stack, counted from 1."""
    wanted = LayerRequest(
        context=request.context,
        features=_mixing_features(request) | _when({"cross_attention": cross_attention}),
        config=request.config,
        masks=request.masks,
        layer_number=layer_number,
        cross_attention=cross_attention,
    )
    return Part(slot="layer", request=wanted, path=path)


def _attention(request: ArchitectureRequest, layer_number: int, slot: str) -> Part:
    wanted = AttentionRequest(
        context=request.context,
        features=_mixing_features(request),
        config=request.config,
        masks=request.masks,
        layer_number=layer_number,
    )
    return Part(slot=slot, request=wanted)


def _when(features: dict[str, bool]) -> frozenset[str]:
    return frozenset([name for name, is_asked in features.items() if is_asked])


def _split_features(config: TransformerConfig) -> frozenset[str]:
    return _when(
        {
            "tensor_parallel": config.tensor_model_parallel_size > 1,
            "sequence_parallel": config.sequence_parallel,
        }
    )


def _linear_features(config: TransformerConfig, is_expert: bool) -> frozenset[str]:
    return _when(
        {
            "tensor_parallel": config.tensor_model_parallel_size > 1,
            "sequence_parallel": config.sequence_parallel,
            "delay_wgrad": config.delay_wgrad_compute,
            "expert": is_expert,
        }
    )


def _architecture_features(request: ArchitectureRequest) -> frozenset[str]:
    return _when({"tensor_parallel": request.config.tensor_model_parallel_size > 1})


def _mixing_features(request: ArchitectureRequest) -> frozenset[str]:
    """What is asked of an architecture in which tokens read one another."""
    config = request.config
    return _when(
        {"tensor_parallel": config.tensor_model_parallel_size > 1, "context_parallel": config.context_parallel_size > 1}
    )


def _context_features(request: ArchitectureRequest, windowed: bool) -> frozenset[str]:
    """What core attention must know to serve a rank's share of the queries, as `context_parallel` asks it."""
    if request.config.context_parallel_size == 1:
        return frozenset()
    counts = windowed or request.config.position_embedding_type == "alibi"
    # A causal chunk's keys end with it. Where others may be seen, a window or a slope must be told positions.
    told = "prefix" in request.masks or (counts and not request.masks <= {"causal", "bottom_right"})
    return _when({"context_parallel": True, "bottom_right": True, "positions": told})
