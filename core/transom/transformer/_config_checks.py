"""What makes a config impossible: each field by itself, then fields together."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from transom.errors import ConfigError
from transom.transformer.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["check_fields", "check_together", "head_size", "normalise", "not_data", "unknown_field"]

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "squared_relu", "quick_gelu", "sigmoid")
DTYPES = ("float32", "bfloat16", "float16", "float64")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("LayerNorm", "RMSNorm"),
    "activation_func": ACTIVATIONS,
    "softmax_type": ("vanilla", "off-by-one", "learnable"),
    "position_embedding_type": ("rope", "learned_absolute", "relative", "alibi", "none"),
    "params_dtype": DTYPES,
    "recompute_granularity": (None, "full", "selective"),
    "recompute_method": (None, "uniform", "block"),
}
RECOMPUTABLE = ("core_attn", "mlp", "layernorm")

_AT_LEAST_ONE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "recompute_num_layers",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)
_PROBABILITIES = ("hidden_dropout", "attention_dropout")
_POSITIVE = (
    "layernorm_epsilon",
    "softmax_scale",
    "attn_logit_softcapping",
    "activation_func_clamp_value",
    "rotary_base",
)
_NOT_NEGATIVE = ("init_method_std", "embedding_init_method_std", "z_loss")
_FINITE = ("glu_linear_offset",)
_OPTIONAL = {
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "recompute_num_layers",
    "virtual_pipeline_model_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "softmax_scale",
    "attn_logit_softcapping",
    "activation_func_clamp_value",
    "embedding_init_method_std",
}
_BOOLEANS = (
    "layernorm_zero_centered_gamma",
    "qk_layernorm",
    "qk_l2_norm",
    "qk_norm_before_rope",
    "fp32_residual_connection",
    "pre_layernorm",
    "post_attention_layernorm",
    "post_mlp_layernorm",
    "add_bias_linear",
    "add_qkv_bias",
    "gated_linear_unit",
    "bias_activation_fusion",
    "use_te_activation_func",
    "apply_query_key_layer_scaling",
    "attention_softmax_in_fp32",
    "attention_output_gate",
    "rotary_interleaved",
    "perform_initialization",
    "use_cpu_initialization",
    "sequence_parallel",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "fp16",
    "bf16",
    "delay_wgrad_compute",
)


def refuse(field: str, value: Any, right: str, *, available: Sequence[str] = ()) -> NoReturn:
    """Raise the error of one field: ``right`` says what would be right."""
    raise ConfigError(
        f"{field} is {value!r}; {right}.",
        available=available,
        field=field,
        value=value,
        path=f"config.{field}",
        file=None,
        line=None,
    )


def unknown_field(name: str, known: Sequence[str]) -> ConfigError:
    """Return the error of a field that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    return ConfigError(
        f"the config has no field {name!r}.",
        available=known,
        hint=f"{near[0]}?" if near else None,
        field=name,
        value=None,
        path=f"config.{name}",
        file=None,
        line=None,
    )


def not_data(name: str, value: Any) -> ConfigError:
    """Return the error of a field that is set to something that a file cannot hold."""
    return ConfigError(
        f"{name} is a function, which cannot be written down.",
        hint="set init_method_std instead",
        field=name,
        value=value,
        path=f"config.{name}",
        file=None,
        line=None,
    )


def normalise(config: TransformerConfig) -> dict[str, Any]:
    """Turn what is accepted for convenience into what is kept: names, tuples, dataclasses, floats."""
    found: dict[str, Any] = {
        "activation_func": _activation_name(config.activation_func),
        "params_dtype": _dtype_name(config.params_dtype),
    }
    for name in ("window_size", "window_attn_skip_freq", "no_rope_freq", "recompute_modules"):
        value = getattr(config, name)
        found[name] = tuple(value) if isinstance(value, list) else value
    if isinstance(config.rope_scaling, Mapping):
        found["rope_scaling"] = _rope_scaling(config.rope_scaling)
    for name in (
        *_PROBABILITIES,
        *_POSITIVE,
        *_NOT_NEGATIVE,
        *_FINITE,
        "rotary_percent",
        "seq_len_interpolation_factor",
    ):
        value = getattr(config, name)
        if isinstance(value, int) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def check_fields(config: TransformerConfig) -> None:
    """Check every field by itself, before anything is derived.

    Raises:
        ConfigError: of the first field that cannot be.
    """
    for name in _AT_LEAST_ONE:
        _check_count(name, getattr(config, name))
    for name in _BOOLEANS:
        if not isinstance(getattr(config, name), bool):
            refuse(name, getattr(config, name), "true or false is needed")
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            refuse(name, getattr(config, name), f"one of {', '.join(map(str, choices))} is needed")
    for name in (*_PROBABILITIES, *_POSITIVE, *_NOT_NEGATIVE, *_FINITE):
        _check_number(name, getattr(config, name))
    if not _is_number(config.rotary_percent) or not 0 < config.rotary_percent <= 1:
        refuse("rotary_percent", config.rotary_percent, "a share above 0 and up to 1 is needed")
    factor = config.seq_len_interpolation_factor
    if factor is not None and (not _is_number(factor) or factor <= 1):
        refuse("seq_len_interpolation_factor", factor, "a number above 1, or none, is needed")
    for name in ("init_method", "output_layer_init_method"):
        value = getattr(config, name)
        if value is not None and not callable(value):
            refuse(name, value, "a function that fills a tensor in place is needed; init_method_std takes a number")
    _check_patterns(config)
    _check_rope_scaling(config.rope_scaling)


def head_size(hidden_size: int, heads: int) -> int:
    """Derive the head size, refusing to round it."""
    if hidden_size % heads:
        refuse(
            "hidden_size",
            hidden_size,
            f"a multiple of num_attention_heads ({heads}) is needed, or kv_channels must be given",
        )
    return hidden_size // heads


def check_together(config: TransformerConfig) -> None:
    """Check fields against each other, after all are derived.

    Raises:
        ConfigError: of the first that contradicts another.
    """
    for field, is_wrong, right in _contradictions(config):
        if is_wrong:
            refuse(field, getattr(config, field), right)


def _contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    groups, heads = c.num_query_groups or 0, c.num_attention_heads
    yield "num_query_groups", heads % groups != 0, f"a divisor of num_attention_heads ({heads}) is needed"
    yield "qk_l2_norm", c.qk_l2_norm and c.qk_layernorm, "it cannot be combined with qk_layernorm; choose one"
    yield "fp16", c.fp16 and c.bf16, "it cannot be combined with bf16; choose one"
    yield from _rope_contradictions(c)
    yield from _window_contradictions(c)
    yield from _recompute_contradictions(c)
    yield from _parallel_contradictions(c)


def _rope_contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    is_rope = c.position_embedding_type == "rope"
    rotated = int((c.kv_channels or 0) * c.rotary_percent)
    yield "rotary_percent", is_rope and rotated < 2, f"at least 2 of the head's {c.kv_channels} components must rotate"
    yield "kv_channels", is_rope and rotated % 2 == 1, f"RoPE rotates pairs, and {rotated} components is an odd number"
    yield "rope_scaling", c.rope_scaling is not None and not is_rope, "it needs position_embedding_type: rope"
    yield (
        "seq_len_interpolation_factor",
        c.seq_len_interpolation_factor is not None and not is_rope,
        "it needs position_embedding_type: rope",
    )
    yield (
        "seq_len_interpolation_factor",
        c.seq_len_interpolation_factor is not None and c.rope_scaling is not None,
        "it cannot be combined with rope_scaling; choose one",
    )
    yield "no_rope_freq", c.no_rope_freq is not None and not is_rope, "it needs position_embedding_type: rope"
    yield (
        "no_rope_freq",
        isinstance(c.no_rope_freq, tuple) and len(c.no_rope_freq) != c.num_layers,
        f"one entry for each of the {c.num_layers} layers is needed",
    )


def _window_contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    skip = c.window_attn_skip_freq
    yield "window_attn_skip_freq", skip is not None and c.window_size is None, "it needs window_size"
    yield (
        "window_attn_skip_freq",
        isinstance(skip, tuple) and len(skip) != c.num_layers,
        f"one entry for each of the {c.num_layers} layers is needed",
    )


def _recompute_contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    is_full, is_selective = c.recompute_granularity == "full", c.recompute_granularity == "selective"
    yield (
        "recompute_method",
        is_full and c.recompute_method is None,
        "recompute_granularity: full needs uniform or block",
    )
    yield "recompute_method", not is_full and c.recompute_method is not None, "it needs recompute_granularity: full"
    yield (
        "recompute_num_layers",
        is_full and c.recompute_num_layers is None,
        "recompute_granularity: full needs the layers in a chunk or block",
    )
    yield (
        "recompute_num_layers",
        not is_full and c.recompute_num_layers is not None,
        "it needs recompute_granularity: full",
    )
    yield (
        "recompute_num_layers",
        (c.recompute_num_layers or 0) > c.num_layers,
        f"at most num_layers ({c.num_layers}) is needed",
    )
    yield "recompute_modules", is_selective and not c.recompute_modules, f"name some of {', '.join(RECOMPUTABLE)}"
    yield (
        "recompute_modules",
        bool(c.recompute_modules) and not is_selective,
        "it needs recompute_granularity: selective",
    )
    yield (
        "recompute_modules",
        any(m not in RECOMPUTABLE for m in c.recompute_modules),
        f"only {', '.join(RECOMPUTABLE)} can be recomputed",
    )


def _parallel_contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    tp, pp, virtual = (
        c.tensor_model_parallel_size,
        c.pipeline_model_parallel_size,
        c.virtual_pipeline_model_parallel_size,
    )
    heads, groups = c.num_attention_heads, c.num_query_groups or 1
    yield "sequence_parallel", c.sequence_parallel and tp == 1, "it needs tensor_model_parallel_size above 1"
    yield "tensor_model_parallel_size", heads % tp != 0, f"a divisor of num_attention_heads ({heads}) is needed"
    yield (
        "tensor_model_parallel_size",
        groups % tp != 0 and tp % groups != 0,
        f"a divisor or a multiple of num_query_groups ({groups}) is needed",
    )
    yield (
        "tensor_model_parallel_size",
        (c.ffn_hidden_size or 0) % tp != 0,
        f"a divisor of ffn_hidden_size ({c.ffn_hidden_size}) is needed",
    )
    yield "virtual_pipeline_model_parallel_size", virtual is not None and pp == 1, "it needs several pipeline stages"
    yield from _pipeline_contradictions(c)


def _pipeline_contradictions(c: TransformerConfig) -> Iterator[tuple[str, bool, str]]:
    pp = c.pipeline_model_parallel_size
    first, last = c.num_layers_in_first_pipeline_stage, c.num_layers_in_last_pipeline_stage
    yield "num_layers_in_first_pipeline_stage", first is not None and pp == 1, "it needs several pipeline stages"
    yield "num_layers_in_last_pipeline_stage", last is not None and pp == 1, "it needs several pipeline stages"
    is_uneven = first is not None or last is not None
    accounts = c.account_for_embedding_in_pipeline_split or c.account_for_loss_in_pipeline_split
    yield (
        "num_layers_in_first_pipeline_stage" if first is not None else "num_layers_in_last_pipeline_stage",
        is_uneven and accounts,
        "it cannot be combined with account_for_embedding/loss_in_pipeline_split; choose one",
    )
    units = c.num_layers + c.account_for_embedding_in_pipeline_split + c.account_for_loss_in_pipeline_split
    middle = units - (first or 0) - (last or 0)
    stages = pp - (first is not None) - (last is not None)
    yield "num_layers", pp > 1 and middle < 0, "the first and last pipeline stage ask for more layers than there are"
    chunks = stages * (c.virtual_pipeline_model_parallel_size or 1)
    yield (
        "num_layers",
        pp > 1 and stages > 0 and middle % chunks != 0,
        f"{middle} layers (embedding and loss counted as asked) do not divide over {chunks} pipeline chunks",
    )


def _check_count(name: str, value: Any) -> None:
    if value is None and name in _OPTIONAL:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        refuse(name, value, "a whole number of at least 1 is needed")


def _check_number(name: str, value: Any) -> None:
    if value is None and name in _OPTIONAL:
        return
    if not _is_number(value):
        refuse(name, value, "a finite number is needed")
    if name in _PROBABILITIES and not 0 <= value < 1:
        refuse(name, value, "a probability from 0 to below 1 is needed")
    if name in _POSITIVE and value <= 0:
        refuse(name, value, "a number above 0 is needed")
    if name in _NOT_NEGATIVE and value < 0:
        refuse(name, value, "a number of at least 0 is needed")


def _check_patterns(config: TransformerConfig) -> None:
    window = config.window_size
    is_pair = isinstance(window, tuple) and len(window) == 2 and all(x is None or _is_distance(x) for x in window)
    if window is not None and not is_pair:
        refuse(
            "window_size", window, "two distances (left, right) of at least 0 are needed, or null on an unbounded side"
        )
    for name in ("window_attn_skip_freq", "no_rope_freq"):
        value = getattr(config, name)
        if isinstance(value, tuple):
            if any(entry not in (0, 1) or isinstance(entry, bool) for entry in value):
                refuse(name, value, "a list of 0 and 1 is needed")
        elif value is not None:
            _check_count(name, value)
    modules = config.recompute_modules
    if not isinstance(modules, tuple) or any(not isinstance(m, str) for m in modules):
        refuse("recompute_modules", modules, "a list of names is needed", available=RECOMPUTABLE)


def _check_rope_scaling(scaling: Any) -> None:
    if scaling is None:
        return
    if not isinstance(scaling, RopeScaling):
        refuse("rope_scaling", scaling, "a mapping with a type, or a RopeScaling, is needed")
    if scaling.type not in ("linear", "llama3", "yarn", "xpos"):
        refuse("rope_scaling", scaling.type, "type must be linear, llama3, yarn or xpos")
    if not _is_number(scaling.factor) or scaling.factor < 1:
        refuse("rope_scaling", scaling.factor, "factor must be a number of at least 1")
    original = scaling.original_max_position_embeddings
    if scaling.type in ("llama3", "yarn") and (not isinstance(original, int) or original < 1):
        refuse("rope_scaling", original, f"{scaling.type} needs original_max_position_embeddings of at least 1")
    if scaling.type == "llama3" and not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        refuse("rope_scaling", scaling.low_freq_factor, "low_freq_factor must be above 0 and below high_freq_factor")
    if scaling.type == "yarn" and not 0 < scaling.beta_slow < scaling.beta_fast:
        refuse("rope_scaling", scaling.beta_slow, "beta_slow must be above 0 and below beta_fast")


def _rope_scaling(mapping: Mapping[str, Any]) -> RopeScaling:
    try:
        return RopeScaling(**mapping)
    except TypeError as error:
        found = re.search(r"'(\w+)'", str(error).rpartition("argument")[2])
        known = tuple(RopeScaling.__dataclass_fields__)
        refuse("rope_scaling", found[1] if found else mapping, "its keys are type, and numbers", available=known)


def _activation_name(function: Any) -> Any:
    """Return the name of a torch function that has one here; anything else is left to the checks."""
    if isinstance(function, str) or not callable(function):
        return function
    name = getattr(function, "__name__", None)
    is_torchs = "torch" in str(getattr(function, "__module__", None) or "torch")
    return name if is_torchs and name in ACTIVATIONS else function


def _dtype_name(dtype: Any) -> Any:
    return dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_distance(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
