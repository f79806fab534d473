"""Everything that says what a transformer computes, validated when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.transformer import _config_checks, _config_contradictions, _config_errors
from transom.transformer.enums import (
    ActivationName,
    DtypeName,
    Normalization,
    PositionEmbeddingType,
    RecomputeGranularity,
    RecomputeMethod,
    SoftmaxType,
)
from transom.transformer.initialization import NormalInit
from transom.transformer.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from torch import Tensor

    InitMethod = Callable[[Tensor], Any]
    FilledInt = int  # whoever reads a config finds these filled in
    FilledFloat = float
    FilledDtype = DtypeName
else:
    InitMethod = Any  # a callable has no form in a spec
    FilledInt = int | None
    FilledFloat = float | None
    FilledDtype = DtypeName | None

__all__ = ["InitMethod", "RopeScaling", "TransformerConfig"]

_FOLLOWS: Any = None  # default of a field that follows from others


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a transformer computes. Frozen and hashable; making one has no side effects and does not import torch.

    Dtypes and activation functions are names (``"bfloat16"``, ``"silu"``); torch's own objects are accepted and become
    names. Fields that follow from others where they are not given are filled in: `num_query_groups`, `kv_channels`,
    `ffn_hidden_size` and the initialisations. Change a config with `replace`, so that they follow anew:
    `dataclasses.replace` takes what was filled in for given.

    Args:
        num_layers: number of layers, L.
        hidden_size: width of the residual stream, h.
        num_attention_heads: query heads, n.
        num_query_groups: key/value heads, g; divides n. `None` = n.
        kv_channels: size of a head, d. `None` = h / n.
        ffn_hidden_size: inner width of the MLP. `None` = 4h.
        hidden_dropout: probability of dropping an element of a residual branch or of the embeddings.
        attention_dropout: probability of dropping an attention weight.
        ffn_dropout: probability of dropping an element inside the MLP, after its non-linearity (T5).
        normalization: ``"LayerNorm"`` or ``"RMSNorm"``.
        layernorm_epsilon: added to the variance, or to the mean square.
        layernorm_zero_centered_gamma: the norm's scale is stored minus one.
        qk_layernorm: normalise queries and keys per head with learned scales.
        qk_layernorm_across_heads: of `qk_layernorm`: all queries of a token together, and all its keys (OLMo 2),
            instead of each head.
        qk_l2_norm: normalise queries and keys per head to unit root mean square, without a scale.
        qk_norm_before_rope: norm first, then RoPE; False = the other published order.
        fp32_residual_connection: keep the residual stream in float32.
        pre_layernorm: norms before attention and MLP (False = none, as in OLMo 2).
        post_attention_layernorm: a norm on attention's output, inside the residual branch (Gemma 2, OLMo 2).
        post_mlp_layernorm: likewise on the MLP's output.
        parallel_residual: the MLP reads what the layer was given, as attention does, instead of attention's result
            (GPT-NeoX): ``x + attn(norm(x)) + mlp(norm(x))``, each with its own norm.
        add_bias_linear: biases in all linears of attention and MLP.
        add_qkv_bias: a bias in the query/key/value projection even without `add_bias_linear`.
        gated_linear_unit: ``act(gate) * up`` MLPs.
        activation_func: name of the MLP's non-linearity.
        glu_linear_offset: added to ``up``.
        activation_func_clamp_value: gate is clamped to at most this, up to plus or minus this.
        bias_activation_fusion: allow kernels that fuse bias and activation; never changes the mathematics.
        use_te_activation_func: run the activation as a module of its own, from the slot ``activation``.
        softmax_scale: multiplies the scores. `None` = 1/sqrt(d).
        softmax_type: ``"vanilla"``; ``"off-by-one"``: one is added to the denominator; ``"learnable"``: a learned sink
            logit a head.
        apply_query_key_layer_scaling: divide scores by the layer's number and multiply them back in float32.
        attention_softmax_in_fp32: softmax in float32 whatever the dtype.
        window_size: (left, right) token distances; `None` = unbounded.
        window_attn_skip_freq: every how many layers attention is full instead of windowed; or one 0 or 1 a layer,
            1 = windowed. `None` = all layers are windowed.
        no_rope_freq: every how many layers RoPE is left out; or one 0 or 1 a layer, 1 = left out.
        attn_logit_softcapping: scores become ``c * tanh(scores / c)``.
        attention_output_gate: multiply attention's output by a sigmoid gate, projected along with the queries.
        embedding_multiplier: multiplies token embeddings, rounded to their dtype (Gemma: the square root of h).
        final_logit_softcapping: the model's logits become ``c * tanh(logits / c)``.
        position_embedding_type: ``"rope"``, ``"learned_absolute"``, ``"relative"`` (T5), ``"alibi"`` or ``"none"``.
        rotary_interleaved: RoPE pairs component 2i with 2i+1, instead of i with i + d/2.
        rotary_base: base of the geometric series of RoPE's wavelengths.
        rotary_percent: share of a head that RoPE rotates.
        rope_scaling: how RoPE is stretched to longer contexts.
        seq_len_interpolation_factor: positions are divided by it (linear interpolation).
        relative_attention_num_buckets: of T5's relative position bias.
        relative_attention_max_distance: of T5's relative position bias, in tokens.
        init_method: initialises weights in place. `None` = normal with `init_method_std`.
        output_layer_init_method: for the projections into the residual stream. `None` = std / sqrt(2L).
        init_method_std: standard deviation.
        embedding_init_method_std: for embeddings. `None` = `init_method_std`.
        perform_initialization: False leaves weights as allocated, for a checkpoint to fill.
        use_cpu_initialization: draw weights on the CPU, so that they do not depend on the device.
        z_loss: weight of the squared log-partition in the loss.
        recompute_granularity: ``"full"`` recomputes layers, ``"selective"`` the modules in `recompute_modules`.
        recompute_method: of full: ``"uniform"`` chunks of layers, or the first ``"block"`` of layers.
        recompute_num_layers: layers in a chunk, or in the block.
        recompute_modules: of selective: ``"core_attn"``, ``"mlp"``, ``"layernorm"``.
        tensor_model_parallel_size: ranks that share each layer's weights.
        pipeline_model_parallel_size: ranks that share the layers.
        virtual_pipeline_model_parallel_size: chunks of layers per pipeline rank.
        pipeline_model_parallel_split_rank: pipeline ranks of an encoder-decoder that share the encoder's layers; the
            others share the decoder's. `None` = as is most even.
        context_parallel_size: ranks that share each sequence: every one has an early and a late chunk of its tokens.
        sequence_parallel: split activations between tensor-parallel regions along the sequence.
        num_layers_in_first_pipeline_stage: where stages are uneven.
        num_layers_in_last_pipeline_stage: where stages are uneven.
        account_for_embedding_in_pipeline_split: the embedding counts as a layer.
        account_for_loss_in_pipeline_split: the loss counts as a layer.
        pipeline_model_parallel_layout: what each stage has, as `transom.transformer.pipeline_layout` says.
        params_dtype: of parameters and activations, by torch's name. `None` = as `fp16` and `bf16` say, else float32.
        fp16: parameters and activations in float16.
        bf16: parameters and activations in bfloat16.
        delay_wgrad_compute: linears leave their weight's gradient to ``backward_dw()``.
        deterministic_mode: only implementations that give the same bits for the same inputs may serve.

    Raises:
        ConfigError: with the field, its value, and what would be right.

    Example:
        >>> config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4)
        >>> config.kv_channels, config.num_query_groups, config.ffn_hidden_size
        (16, 4, 256)
        >>> config.replace(hidden_size=128).ffn_hidden_size
        512
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: FilledInt = _FOLLOWS
    kv_channels: FilledInt = _FOLLOWS
    ffn_hidden_size: FilledInt = _FOLLOWS

    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    ffn_dropout: float = 0.0
    normalization: Normalization = "LayerNorm"
    layernorm_epsilon: float = 1e-5
    layernorm_zero_centered_gamma: bool = False
    qk_layernorm: bool = False
    qk_layernorm_across_heads: bool = False
    qk_l2_norm: bool = False
    qk_norm_before_rope: bool = True
    fp32_residual_connection: bool = False
    pre_layernorm: bool = True
    post_attention_layernorm: bool = False
    post_mlp_layernorm: bool = False
    parallel_residual: bool = False

    add_bias_linear: bool = True
    add_qkv_bias: bool = False
    gated_linear_unit: bool = False
    activation_func: ActivationName = "gelu"
    glu_linear_offset: float = 0.0
    activation_func_clamp_value: float | None = None
    bias_activation_fusion: bool = False
    use_te_activation_func: bool = False

    softmax_scale: float | None = None
    softmax_type: SoftmaxType = "vanilla"
    apply_query_key_layer_scaling: bool = False
    attention_softmax_in_fp32: bool = True
    window_size: tuple[int | None, int | None] | None = None
    window_attn_skip_freq: int | tuple[int, ...] | None = None
    no_rope_freq: int | tuple[int, ...] | None = None
    attn_logit_softcapping: float | None = None
    attention_output_gate: bool = False
    embedding_multiplier: float = 1.0
    final_logit_softcapping: float | None = None
    position_embedding_type: PositionEmbeddingType = "learned_absolute"
    rotary_interleaved: bool = False
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    rope_scaling: RopeScaling | None = None
    seq_len_interpolation_factor: float | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128

    init_method: InitMethod = _FOLLOWS
    output_layer_init_method: InitMethod = _FOLLOWS
    init_method_std: float = 0.02
    embedding_init_method_std: FilledFloat = _FOLLOWS
    perform_initialization: bool = True
    use_cpu_initialization: bool = False
    z_loss: float = 0.0
    recompute_granularity: RecomputeGranularity | None = None
    recompute_method: RecomputeMethod | None = None
    recompute_num_layers: int | None = None
    recompute_modules: tuple[str, ...] = ()

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    pipeline_model_parallel_split_rank: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    num_layers_in_first_pipeline_stage: int | None = None
    num_layers_in_last_pipeline_stage: int | None = None
    account_for_embedding_in_pipeline_split: bool = False
    account_for_loss_in_pipeline_split: bool = False
    pipeline_model_parallel_layout: str | None = None
    params_dtype: FilledDtype = _FOLLOWS
    fp16: bool = False
    bf16: bool = False
    delay_wgrad_compute: bool = False
    deterministic_mode: bool = False

    def __post_init__(self) -> None:
        # What was given, not what follows from it, is what replace() and to_dict() start from.
        given = {name: getattr(self, name) for name, default in _DEFAULTS.items() if getattr(self, name) != default}
        self.__dict__["_given"] = given
        self.__dict__.update(_config_checks.normalise(self))
        _config_checks.check_fields(self)
        self.__dict__.update(_derived(self))
        _config_contradictions.check_together(self)

    def replace(self, **changes: Any) -> TransformerConfig:
        """Return a config with some fields changed; fields that were not given follow from the others anew.

        Raises:
            ConfigError: the changed config cannot be.
        """
        unknown = sorted(changes.keys() - _DEFAULTS.keys())
        if unknown:
            raise _config_errors.unknown_field(unknown[0], tuple(_DEFAULTS))
        return TransformerConfig(**(self.__dict__["_given"] | changes))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields that are not at their defaults as plain data, as a spec's ``config`` section.

        Raises:
            ConfigError: an initialisation is given as a function, which has no form in a spec.
        """
        given: dict[str, Any] = self.__dict__["_given"]
        for name in ("init_method", "output_layer_init_method"):
            if name in given:
                raise _config_errors.not_data(name, given[name])
        plain = {name: getattr(self, name) for name in given}
        if self.rope_scaling is not None:
            plain["rope_scaling"] = self.rope_scaling.to_dict()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def window_of(self, layer_number: int) -> tuple[int | None, int | None] | None:
        """Return the attention window of a layer, counted from 1; `None` = unbounded."""
        is_full = _is_marked(self.window_attn_skip_freq, layer_number, marked=0)
        return None if is_full else self.window_size

    def has_rope(self, layer_number: int) -> bool:
        """Whether a layer, counted from 1, rotates its queries and keys."""
        return self.position_embedding_type == "rope" and not _is_marked(self.no_rope_freq, layer_number, marked=1)


def _is_marked(pattern: int | tuple[int, ...] | None, layer_number: int, *, marked: int) -> bool:
    """Whether a layer stands out: every n-th one does, or those whose entry in the pattern is ``marked``."""
    if pattern is None:
        return False
    if isinstance(pattern, int):
        return layer_number % pattern == 0
    return pattern[layer_number - 1] == marked


def _derived(config: TransformerConfig) -> dict[str, Any]:
    heads, hidden = config.num_attention_heads, config.hidden_size
    derived: dict[str, Any] = {}
    if config.num_query_groups is None:
        derived["num_query_groups"] = heads
    if config.kv_channels is None:
        derived["kv_channels"] = _config_contradictions.head_size(hidden, heads)
    if config.ffn_hidden_size is None:
        derived["ffn_hidden_size"] = 4 * hidden
    if config.embedding_init_method_std is None:
        derived["embedding_init_method_std"] = config.init_method_std
    if config.params_dtype is None:
        derived["params_dtype"] = "float16" if config.fp16 else "bfloat16" if config.bf16 else "float32"
    if config.init_method is None:
        derived["init_method"] = NormalInit(config.init_method_std)
    if config.output_layer_init_method is None:
        derived["output_layer_init_method"] = NormalInit(config.init_method_std / math.sqrt(2 * config.num_layers))
    return derived


_DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(TransformerConfig)}
