"""From a spec to the ``config.json`` of a family that computes the same; refused where none does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.families import FAMILIES
from transom.checkpoint.hugging_face.settings import Settings
from transom.errors import CheckpointError, TransomError
from transom.specs.load import load_spec

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.family import Family
    from transom.specs.spec import ModelSpec
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["choose_family", "differences", "exported_settings"]

_OF_TRAINING = (
    "hidden_dropout",
    "attention_dropout",
    "ffn_dropout",
    "init_method",
    "output_layer_init_method",
    "init_method_std",
    "embedding_init_method_std",
    "perform_initialization",
    "use_cpu_initialization",
    "z_loss",
    "delay_wgrad_compute",
)
_OF_EXECUTION = (
    "bias_activation_fusion",
    "use_te_activation_func",
    "apply_query_key_layer_scaling",
    "attention_softmax_in_fp32",
    "fp32_residual_connection",
    "sequence_parallel",
    "params_dtype",
    "fp16",
    "bf16",
)
_PREFIXES = (
    "recompute_",
    "tensor_model_",
    "pipeline_model_",
    "virtual_pipeline_",
    "context_parallel_",
    "num_layers_in_",
    "account_for_",
)
_SHARED = "share_embeddings_and_output_weights"
_OF_ROPE = ("rotary_base", "rotary_percent", "rotary_interleaved", "rope_scaling")
_OLD_ROPE = ("rope_parameters", "rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base")


def choose_family(spec: ModelSpec, name: str | None = None, *, first: str | None = None) -> Family:
    """Find the family whose config can tell what a spec computes.

    Args:
        spec: the spec.
        name: a ``model_type``; `None` = the first that can.
        first: the ``model_type`` that is tried first.

    Returns:
        the family.

    Raises:
        CheckpointError: none can, or not the one that was named; with what they cannot tell.
    """
    if name is not None and name not in FAMILIES:
        what = f"no family of models is named {name!r}."
        raise CheckpointError(what, asked_by="family", available=sorted(FAMILIES), model_type=name)
    asked = [FAMILIES[name]] if name else sorted(FAMILIES.values(), key=lambda family: family.model_type != first)
    found = {}
    for family in asked:
        found[family.model_type] = differences(family, spec)
        if not found[family.model_type]:
            return family
    near = [model_type for model_type in found if FAMILIES[model_type].model == spec.model] or list(found)
    nearest = sorted(near, key=lambda model_type: len(found[model_type]))[:3]
    raise CheckpointError(
        f"what {spec.name} computes cannot be told by a config.json of {name or 'any family there is'}.",
        asked_by=spec.source,
        failed=[f"{model_type}: {'; '.join(found[model_type])}" for model_type in nearest],
        differences=found,
    )


def differences(family: Family, spec: ModelSpec) -> list[str]:
    """Say what of a spec is another when it is written as the family's config and read again; empty = nothing."""
    if spec.model != family.model:
        return [f"model is {spec.model}, and would be {family.model}"]
    settings = Settings(family.to_settings(spec), family.model_type)
    try:
        again = load_spec(family.to_spec(settings))
    except TransomError as error:
        return [*error.failed] or [error.what]
    before, after = _computed(spec), _computed(again)
    if family.always_ties:  # the files tell it, not the config
        del before[_SHARED]
    return [
        f"{name} is {before[name]}, and would be {after[name]}"
        for name in before.keys() & after.keys()
        if not _same(before[name], after[name])
    ]


def exported_settings(
    family: Family, spec: ModelSpec, *, dtype: str, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the fields of a ``config.json``.

    Args:
        family: as `choose_family` gives it.
        spec: the spec.
        dtype: of the weights, by torch's name.
        original: the fields of the ``config.json`` that the spec was once read from, of which those are kept that say
            nothing of what is computed, such as the ids of special tokens.

    Returns:
        the fields.
    """
    kept = dict(original or {})
    if kept.get("model_type") != family.model_type:
        kept = {}
    for name in ("dtype", "torch_dtype", "transformers_version", *_OLD_ROPE):
        kept.pop(name, None)
    written = family.to_settings(spec)
    before, after = Settings(kept, family.model_type), Settings(written, family.model_type)
    as_it_was = {
        f.theirs: kept[f.theirs] for f in family.fields if f.theirs in kept and f.read(before) == f.read(after)
    }
    return kept | written | as_it_was | {"torch_dtype": dtype}


def _computed(spec: ModelSpec) -> dict[str, Any]:
    """What a model computes in evaluation, each in one way of saying it."""
    decoder = _computed_by(spec.config)
    encoder = {} if spec.encoder_config is None else _computed_by(spec.encoder_config)
    options, shared = spec.options.get("model", {}), spec.share_embeddings_and_output_weights
    return (
        decoder
        | {f"encoder_config.{name}": value for name, value in encoder.items()}
        | {
            "vocab_size": spec.vocab_size,
            "max_sequence_length": spec.max_sequence_length,
            _SHARED: shared,
            "options.model.scale_logits": options.get("scale_logits", False),
            "options.model.tied_bias": spec.model == "t5" and shared and options.get("tied_bias", True),
        }
    )


def _computed_by(config: TransformerConfig) -> dict[str, Any]:
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    without_rope = () if config.position_embedding_type == "rope" else _OF_ROPE
    relative = [name for name in found if name.startswith("relative_") and config.position_embedding_type != "relative"]
    for name in [*_OF_TRAINING, *_OF_EXECUTION, *without_rope, *relative, "window_size", "window_attn_skip_freq"]:
        del found[name]
    layers = range(1, config.num_layers + 1)
    return {name: value for name, value in found.items() if not name.startswith(_PREFIXES)} | {
        "softmax_scale": _scale(config),
        "no_rope_freq": [config.has_rope(number) for number in layers],
        "windows": [config.window_of(number) for number in layers],
    }


def _scale(config: TransformerConfig) -> float:
    return config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)
