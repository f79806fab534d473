"""What makes one field of a config impossible, and what is accepted for convenience."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from transom.transformer import enums
from transom.transformer._config_errors import refuse
from transom.transformer.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["check_fields", "normalise"]

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "normalization": get_args(enums.Normalization),
    "activation_func": get_args(enums.ActivationName),
    "softmax_type": get_args(enums.SoftmaxType),
    "position_embedding_type": get_args(enums.PositionEmbeddingType),
    "params_dtype": (None, *get_args(enums.DtypeName)),
    "recompute_granularity": (None, *get_args(enums.RecomputeGranularity)),
    "recompute_method": (None, *get_args(enums.RecomputeMethod)),
}
_COUNTS = (
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
    "pipeline_model_parallel_split_rank",
    "context_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)
_NUMBERS: Mapping[str, tuple[str, float, float]] = {
    # what is needed, above (or at, where a number may be zero), below (or at, where a share may be whole)
    "hidden_dropout": ("a probability from 0 to below 1", 0.0, math.nextafter(1, 0)),
    "attention_dropout": ("a probability from 0 to below 1", 0.0, math.nextafter(1, 0)),
    "ffn_dropout": ("a probability from 0 to below 1", 0.0, math.nextafter(1, 0)),
    "rotary_percent": ("a share above 0 and up to 1", math.nextafter(0, 1), 1.0),
    "seq_len_interpolation_factor": ("a number above 1", math.nextafter(1, 2), math.inf),
    "layernorm_epsilon": ("a number above 0", math.nextafter(0, 1), math.inf),
    "softmax_scale": ("a number above 0", math.nextafter(0, 1), math.inf),
    "attn_logit_softcapping": ("a number above 0", math.nextafter(0, 1), math.inf),
    "final_logit_softcapping": ("a number above 0", math.nextafter(0, 1), math.inf),
    "embedding_multiplier": ("a number above 0", math.nextafter(0, 1), math.inf),
    "activation_func_clamp_value": ("a number above 0", math.nextafter(0, 1), math.inf),
    "rotary_base": ("a number above 0", math.nextafter(0, 1), math.inf),
    "init_method_std": ("a number of at least 0", 0.0, math.inf),
    "embedding_init_method_std": ("a number of at least 0", 0.0, math.inf),
    "z_loss": ("a number of at least 0", 0.0, math.inf),
    "glu_linear_offset": ("a finite number", -math.inf, math.inf),
}
_PATTERNS = ("window_attn_skip_freq", "no_rope_freq")


def normalise(config: TransformerConfig) -> dict[str, Any]:
    """Turn what is accepted for convenience into what is kept: names, tuples, dataclasses, floats."""
    found: dict[str, Any] = {
        "activation_func": _activation_name(config.activation_func),
        "params_dtype": _dtype_name(config.params_dtype),
    }
    for name in ("window_size", *_PATTERNS, "recompute_modules"):
        value = getattr(config, name)
        found[name] = tuple(value) if isinstance(value, list) else value
    for name in _NUMBERS:
        value = getattr(config, name)
        found[name] = float(value) if _is_whole(value) else value
    if isinstance(config.rope_scaling, Mapping):
        found["rope_scaling"] = RopeScaling.from_mapping(config.rope_scaling)
    return found


def check_fields(config: TransformerConfig) -> None:
    """Check every field by itself, before anything is derived.

    Raises:
        ConfigError: of the first field that cannot be.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in _COUNTS:
        _check_count(name, getattr(config, name), may_be_none=defaults[name] is None)
    for name, default in defaults.items():
        if isinstance(default, bool) and not isinstance(getattr(config, name), bool):
            refuse(name, getattr(config, name), "true or false is needed")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            refuse(name, getattr(config, name), "it is not one of those there are", available=choices)
    for name in _NUMBERS:
        _check_number(name, getattr(config, name), may_be_none=defaults[name] is None)
    for name in ("init_method", "output_layer_init_method"):
        value = getattr(config, name)
        if value is not None and not callable(value):
            refuse(name, value, "a function that fills a tensor in place is needed; init_method_std takes a number")
    layout = config.pipeline_model_parallel_layout
    if layout is not None and not isinstance(layout, str):
        refuse("pipeline_model_parallel_layout", layout, "a text such as Et*3|(tt|)*2,t*3,L is needed")
    _check_window(config.window_size)
    for name in _PATTERNS:
        _check_pattern(name, getattr(config, name))
    _check_modules(config.recompute_modules)
    if config.rope_scaling is not None and not isinstance(config.rope_scaling, RopeScaling):
        refuse("rope_scaling", config.rope_scaling, "a mapping with a type, or a RopeScaling, is needed")


def _check_count(name: str, value: Any, *, may_be_none: bool = False) -> None:
    if value is None and may_be_none:
        return
    if not _is_whole(value) or value < 1:
        refuse(name, value, "a whole number of at least 1 is needed")


def _check_number(name: str, value: Any, *, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    needed, low, high = _NUMBERS[name]
    if not isinstance(value, float) or not math.isfinite(value) or not low <= value <= high:
        refuse(name, value, f"{needed} is needed")


def _check_window(window: Any) -> None:
    if window is None:
        return
    is_pair = isinstance(window, tuple) and len(window) == 2
    if not is_pair or any(side is not None and (not _is_whole(side) or side < 0) for side in window):
        refuse("window_size", window, "two distances (left, right) of at least 0 are needed, null where unbounded")
    if window == (None, None):
        refuse("window_size", window, "a window that is unbounded on both sides is none; leave it out")


def _check_pattern(name: str, pattern: Any) -> None:
    if not isinstance(pattern, tuple):
        _check_count(name, pattern, may_be_none=True)
    elif any(not _is_whole(entry) or entry not in (0, 1) for entry in pattern):
        refuse(name, pattern, "a list of 0 and 1, one a layer, is needed")


def _check_modules(modules: Any) -> None:
    known = get_args(enums.RecomputeModule)
    if not isinstance(modules, tuple):
        refuse("recompute_modules", modules, "a list of names is needed", available=known)
    for module in modules:
        if module not in known:
            refuse("recompute_modules", modules, f"{module!r} cannot be recomputed alone", available=known)


def _activation_name(function: Any) -> Any:
    """Return the name of a torch function that has one here; anything else is left to the checks."""
    if isinstance(function, functools.partial) and _activation_name(function.func) == "gelu":
        return {"tanh": "gelu_tanh", "none": "gelu"}.get(str(function.keywords.get("approximate")), function)
    if isinstance(function, str) or not callable(function):
        return function
    # Builtin functions of torch say that they are of torch._C._nn, or are bound to a class of torch.
    home = str(getattr(function, "__module__", None) or getattr(function, "__self__", ""))
    name = getattr(function, "__name__", None)
    is_known = name in get_args(enums.ActivationName) and ("torch" in home or home.startswith("transom."))
    return name if is_known else function


def _dtype_name(dtype: Any) -> Any:
    return dtype if dtype is None or isinstance(dtype, str) else str(dtype).removeprefix("torch.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
