"""State dicts of Megatron-core's GPT and T5 models, through a layout map."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from transom.checkpoint.layout_map import LayoutMap, Rule
from transom.checkpoint.layout_operations import Reverse, Stack

if TYPE_CHECKING:
    from transom.specs.spec import ModelSpec

__all__ = ["megatron_layout", "megatron_names"]

_LAYER = re.compile(r"((?:encoder\.|decoder\.)?layers\.)\d+\.(.+)")
_FUSED = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_",
    "pre_cross_attn_layernorm": "cross_attention.linear_q.layer_norm_",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_",
}
"""Norms that TransformerEngine's modules hold together with the linear after them."""
_SECOND_NAMES = {
    "embedding.position_embeddings.weight": "position_embeddings.weight",
    "lm_head.output_layer.weight": "output_layer.weight",
}
"""What T5 gives under a second name too."""
_LEFT_OUT = ("_extra_state", "rotary_pos_emb.inv_freq")


def megatron_names(names: Collection[str]) -> dict[str, str]:
    """Say which tensors of a state dict are weights, and what they are called without what wraps the model.

    Args:
        names: of the state dict.

    Returns:
        the names that `megatron_layout` knows, and those in the state dict.
    """
    bare = {re.sub(r"^(module\.)+", "", name): name for name in names if not name.endswith(_LEFT_OUT)}
    for owner, second in _SECOND_NAMES.items():
        if owner in bare:
            bare.pop(second, None)
    return bare


def megatron_layout(spec: ModelSpec, canonical: Collection[str], given: Collection[str]) -> LayoutMap:
    """Give the layout map from a state dict of Megatron-core to canonical names.

    Names and layouts are Megatron's in the first place, but for the block of a GPT model (``decoder.layers.0``), norms
    that TransformerEngine fuses with the linears after them, and layers that a distributed checkpoint stacks into one
    tensor. Weights that were split over tensor-parallel ranks must have been joined.

    Args:
        spec: of the model.
        canonical: names of its weights.
        given: names in the state dict, as `megatron_names` gives them, from which it is told which forms they have.

    Returns:
        the map.

    Source: the names of Megatron-core 0.19.
    """
    stem = "" if spec.model == "t5" else "decoder."
    counts = {
        "layers.": spec.config.num_layers,
        "decoder.layers.": spec.config.num_layers,
        "encoder.layers.": (spec.encoder_config or spec.config).num_layers,
    }
    rules: dict[str, Rule] = {}
    for name in canonical:
        layer = _LAYER.fullmatch(name)
        if layer is None:
            there = stem + name if name.startswith("final_layernorm.") else name
            rules[name] = Rule(there, name)
        else:
            rules[layer[1] + layer[2]] = _of_layers(layer[1], layer[2], stem, counts[layer[1]], given)
    return LayoutMap(list(rules.values()), {stack.replace(".", "_"): count for stack, count in counts.items()})


def _of_layers(stack: str, name: str, stem: str, count: int, given: Collection[str]) -> Rule:
    """Give the rule for one weight of all layers of a stack, in the form in which the state dict has it."""
    number = "{" + stack.replace(".", "_") + "}"
    place, _, kind = name.partition(".")
    forms = [name, _FUSED[place] + kind] if place in _FUSED else [name]
    for form in forms:
        if f"{stem}{stack}{form}" in given:
            return Rule(f"{stem}{stack}{form}", f"{stack}{number}.{name}", Reverse(Stack(count)))
        if f"{stem}{stack}0.{form}" in given:
            return Rule(f"{stem}{stack}{number}.{form}", f"{stack}{number}.{name}")
    return Rule(f"{stem}{stack}{number}.{name}", f"{stack}{number}.{name}")
