"""State dicts of torchtune's Llama models, through a layout map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transom.checkpoint.layout_map import LayoutMap, Rule
from transom.checkpoint.layout_operations import Concat, Interleave, Operation, RotaryPermute
from transom.errors import CheckpointError

if TYPE_CHECKING:
    from transom.specs.spec import ModelSpec

__all__ = ["torchtune_layout"]


def torchtune_layout(spec: ModelSpec) -> LayoutMap:
    """Give the layout map from a state dict of torchtune's ``TransformerDecoder`` to canonical names.

    Its RoPE turns component 2i with 2i + 1. A spec with ``rotary_interleaved: true`` computes the same; for any other,
    rows of the query and key projections are reordered, which comes to the same too.

    Args:
        spec: of the model: what torchtune builds as Llama 2 or 3.

    Returns:
        the map.

    Raises:
        CheckpointError: no such model can be what the spec describes.

    Source: the names of torchtune 0.6; of the MLP, w1 is the gate and w3 what it multiplies.
    """
    _check(spec)
    there, here = "layers.{layer}", "layers.{layer}"
    rules = [
        Rule("tok_embeddings.weight", "embedding.word_embeddings.weight"),
        Rule("norm.scale", "final_layernorm.weight"),
        Rule(f"{there}.sa_norm.scale", f"{here}.input_layernorm.weight"),
        Rule(f"{there}.mlp_norm.scale", f"{here}.pre_mlp_layernorm.weight"),
        Rule([f"{there}.attn.{x}_proj.weight" for x in "qkv"], f"{here}.self_attention.linear_qkv.weight", *_qkv(spec)),
        Rule(f"{there}.attn.output_proj.weight", f"{here}.self_attention.linear_proj.weight"),
        Rule([f"{there}.mlp.{w}.weight" for w in ("w1", "w3")], f"{here}.mlp.linear_fc1.weight", Concat(2)),
        Rule(f"{there}.mlp.w2.weight", f"{here}.mlp.linear_fc2.weight"),
    ]
    if not spec.share_embeddings_and_output_weights:
        rules.append(Rule("output.weight", "output_layer.weight"))
    return LayoutMap(rules, {"layer": spec.config.num_layers})


def _qkv(spec: ModelSpec) -> list[Operation]:
    config = spec.config
    groups = config.num_query_groups
    fused = Interleave(groups, (config.num_attention_heads // groups, 1, 1))
    return [fused] if config.rotary_interleaved else [RotaryPermute(config.kv_channels, count=2), fused]


def _check(spec: ModelSpec) -> None:
    config = spec.config
    wanted = {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "layernorm_zero_centered_gamma": False,
        "pre_layernorm": True,
        "post_attention_layernorm": False,
        "post_mlp_layernorm": False,
    }
    found = {name: getattr(config, name) for name in wanted}
    wrong = [
        f"{name} is {found[name]!r}, and is {right!r} there" for name, right in wanted.items() if found[name] != right
    ]
    if spec.model != "decoder":
        wrong.append(f"model is {spec.model!r}, and is 'decoder' there")
    if wrong:
        raise CheckpointError(
            f"{spec.name} is no model that torchtune builds as Llama.",
            asked_by=spec.source,
            failed=wrong,
            hint="the spec of the model that the weights are of",
            problems=tuple(wrong),
        )
