"""A layer whose norms are fused into what follows them, with canonical checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, final

from torch import Tensor
from transom import LayoutMap
from transom.checkpoint.layout_map import Rule
from transom.slots.attention import AttentionRequest
from transom.slots.request import Part
from transom.transformer import parts
from transom.transformer.attention import SelfAttention, SelfAttentionSubmodules
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict
from transom.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from transom_te_linear.fused import ACTIVATIONS, TeLayerNormLinear, TeLayerNormMLP
from transom_te_linear.installation import missing
from transom_te_linear.options import TeOptions
from transom_te_linear.shard import check_recipe, describe_recipe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import AttentionMask, TransformerConfig
    from transom.slots.kv_cache import LayerCache
    from transom.slots.layer import Layer, LayerBuilder, LayerRequest
    from transom.slots.request import Parts

__all__ = ["TeLayer", "TeLayerSubmodules"]

_CANONICAL = {
    "self_attention.linear_qkv.norm_weight": "input_layernorm.weight",
    "self_attention.linear_qkv.norm_bias": "input_layernorm.bias",
    "mlp.norm_weight": "pre_mlp_layernorm.weight",
    "mlp.norm_bias": "pre_mlp_layernorm.bias",
    "mlp.fc1_weight": "mlp.linear_fc1.weight",
    "mlp.fc1_bias": "mlp.linear_fc1.bias",
    "mlp.fc2_weight": "mlp.linear_fc2.weight",
    "mlp.fc2_bias": "mlp.linear_fc2.bias",
}


@dataclass(frozen=True)
class TeLayerSubmodules:
    """Builders of what is not fused; `None` where the config has no such place.

    Args:
        core_attention: of softmax(q·k) v, its request bound.
        linear_proj: of attention's output projection.
        self_attn_bda: adds self-attention's output to the residual stream.
        mlp_bda: adds the MLP's output.
        q_layernorm: of the queries' norm.
        k_layernorm: of the keys' norm.
        rotary: of the position embedding, its request bound.
        post_attention_layernorm: on self-attention's output, inside the branch.
        post_mlp_layernorm: on the MLP's output, inside the branch.
    """

    core_attention: Callable[..., Any]
    linear_proj: Callable[..., Any]
    self_attn_bda: Callable[..., Any]
    mlp_bda: Callable[..., Any]
    q_layernorm: Callable[..., Any] | None = None
    k_layernorm: Callable[..., Any] | None = None
    rotary: Callable[..., Any] | None = None
    post_attention_layernorm: Callable[..., Any] | None = None
    post_mlp_layernorm: Callable[..., Any] | None = None


@final
class TeLayer(ShardedModule):
    """The reference's pre-norm layer, its norms fused: ``LayerNormLinear`` and ``LayerNormMLP`` of Transformer Engine.

    Its checkpoints are those of the reference's layer: a layout map gives the fused parameters their canonical names.

    Args:
        config: sizes, norms, dropout, recompute.
        submodules: builders of what is not fused.
        layer_number: counted from 1 over the whole model.
        tp_group: `None`: it is for one process.
        options: `TeOptions`, of both fused modules.
    """

    Submodules = TeLayerSubmodules
    Options = TeOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TeLayerSubmodules,
        layer_number: int = 1,
        *,
        tp_group: ProcessGroup | None = None,
        options: TeOptions | None = None,
    ) -> None:
        super().__init__()
        attention = SelfAttentionSubmodules(
            linear_qkv=partial(TeLayerNormLinear, options=options),
            core_attention=submodules.core_attention,
            linear_proj=submodules.linear_proj,
            q_layernorm=submodules.q_layernorm,
            k_layernorm=submodules.k_layernorm,
            rotary=submodules.rotary,
        )
        layer = TransformerLayer(
            config,
            TransformerLayerSubmodules(
                self_attention=partial(SelfAttention, submodules=attention),
                post_attention_layernorm=submodules.post_attention_layernorm,
                self_attn_bda=submodules.self_attn_bda,
                mlp=partial(TeLayerNormMLP, options=options),
                post_mlp_layernorm=submodules.post_mlp_layernorm,
                mlp_bda=submodules.mlp_bda,
            ),
            layer_number,
            tp_group=tp_group,
        )
        self.__dict__["_layer"] = layer  # not registered: its parts are this layer's own, under the same names
        for name, part in layer.named_children():
            self.add_module(name, part)

    @classmethod
    def parts(cls, request: LayerRequest) -> Parts:
        """Say what is inside beside what is fused."""
        config, number = request.config, request.layer_number
        within = AttentionRequest(
            context=request.context,
            features=request.features,
            config=config,
            masks=request.masks,
            layer_number=number,
        )
        found: dict[str, Any] = {
            name: replace(part, path=f"self_attention.{name}")
            for name, part in SelfAttention.parts(within).items()
            if name != "linear_qkv" and isinstance(part, Part)
        }
        found |= {name: parts.bias_dropout_add(request) for name in ("self_attn_bda", "mlp_bda")}
        norm = parts.norm(request, config.hidden_size)
        places = {
            "post_attention_layernorm": config.post_attention_layernorm,
            "post_mlp_layernorm": config.post_mlp_layernorm,
        }
        found |= {place: norm for place, is_wanted in places.items() if is_wanted}
        return {name: found[name] for name in cls.Submodules.__dataclass_fields__ if name in found}

    @classmethod
    def supports(cls, request: LayerRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        config = request.config
        if not config.pre_layernorm:
            yield "the layer has no norms to fuse"
        if request.cross_attention:
            yield "it has no cross-attention"
        if config.parallel_residual:
            yield "its MLP does not read the layer's input"
        if config.fp32_residual_connection:
            yield "its fused norms do not narrow a float32 residual stream"
        if config.delay_wgrad_compute:
            yield "its fused parts do not put weight gradients off"
        if config.activation_func not in ACTIVATIONS:
            yield f"its MLP knows {', '.join(ACTIVATIONS)}, not {config.activation_func}"
        if config.activation_func_clamp_value is not None or config.glu_linear_offset:
            yield "its MLP neither clamps nor shifts"
        if "layernorm" in config.recompute_modules:
            yield "a fused norm cannot be recomputed by itself"
        yield from missing(request.context)

    @classmethod
    def describe(cls, request: LayerRequest, options: TeOptions | None) -> str:
        """Say what is fused, and in which precision it will compute.

        Raises:
            SpecError: the device or the sizes do not allow the recipe.
        """
        config = request.config
        check_recipe(options or TeOptions(), request.context, (config.hidden_size, config.ffn_hidden_size))
        precision = describe_recipe(options)
        return f"LayerNormLinear, LayerNormMLP{f'; {precision}' if precision else ''}"

    def layout_map(self) -> LayoutMap:
        """Say how the fused parameters become those of the reference's layer."""
        return LayoutMap([Rule(own, canonical) for own, canonical in _CANONICAL.items()])

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
        """Run the layer, as `TransformerLayer.forward` does."""
        return self.layer(  # type: ignore[no-any-return]
            hidden_states, mask=mask, context=context, context_mask=context_mask, positions=positions, cache=cache
        )

    @property
    def layer(self) -> Any:
        """The reference's layer, with the parts that this one has now."""
        layer: TransformerLayer = self.__dict__["_layer"]
        layer._modules.update(self._modules)
        return layer

    def train(self, mode: bool = True) -> Self:
        """Set the mode, of the reference's layer too."""
        self.__dict__["_layer"].training = mode
        return super().train(mode)

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off in what is not fused."""
        self.layer.backward_dw()

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the state under canonical names."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for own, canonical in _CANONICAL.items():
            shard = state.pop(prefix + own, None)
            if shard is not None:
                state[prefix + canonical] = replace(shard, key=prefix + canonical)
        return state


if TYPE_CHECKING:
    _builder: LayerBuilder = TeLayer

    def _is_a_layer(module: TeLayer) -> Layer:
        return module
