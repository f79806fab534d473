"""Phi-3: Llama with its projections fused: queries, keys and values one after another, and gate and up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.llama import FIXED, IGNORED, NORMS, fields, qkv, ties
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.windows import read_windows, width
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Split

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["PHI3"]


def _read(settings: Settings) -> dict[str, Any]:
    size = settings.get("sliding_window")
    layers = ["sliding_attention"] * (settings.get("num_hidden_layers") or 0)
    return read_rope(settings, is_partial=True) | ({} if size is None else read_windows(settings, size, layers))


def _write(spec: ModelSpec) -> dict[str, Any]:
    return write_rope(spec.config) | {"sliding_window": width(spec.config)}


def _rules(spec: ModelSpec) -> list[Rule]:
    config = spec.config
    heads, groups, d = config.num_attention_heads, config.num_query_groups, config.kv_channels
    there, here = "model.layers.{layer}", "layers.{layer}"
    found = [
        Rule("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        Rule("model.norm.weight", "final_layernorm.weight"),
        *(Rule(f"{there}.{name}.weight", f"{here}.{mine}.weight") for name, mine in NORMS.items()),
        Rule(
            f"{there}.self_attn.qkv_proj.weight",
            f"{here}.self_attention.linear_qkv.weight",
            Split((heads * d, groups * d, groups * d)),
            qkv(config),
        ),
        Rule(f"{there}.self_attn.o_proj.weight", f"{here}.self_attention.linear_proj.weight"),
        Rule(f"{there}.mlp.gate_up_proj.weight", f"{here}.mlp.linear_fc1.weight"),
        Rule(f"{there}.mlp.down_proj.weight", f"{here}.mlp.linear_fc2.weight"),
    ]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("lm_head.weight", "output_layer.weight"))
    return found


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    prefix="model.",
    fields=[field for field in fields(length=4096, epsilon=1e-5) if field.theirs != "head_dim"],
    fixed=FIXED,
    required={"resid_pdrop": (0.0, 0.0, "dropout here is of the embeddings too")},
    read=_read,
    write=_write,
    rules=_rules,
    ties=ties,
    ignored=IGNORED,
)
