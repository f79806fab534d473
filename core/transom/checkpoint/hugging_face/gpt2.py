"""GPT-2: learned positions, and weights kept ``[in, out]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transom.checkpoint.hugging_face.family import Family, Field, activation
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Interleave, Split, Transpose

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["GPT2"]

_LINEARS = {
    "attn.c_proj": "self_attention.linear_proj",
    "mlp.c_fc": "mlp.linear_fc1",
    "mlp.c_proj": "mlp.linear_fc2",
}
_NORMS = {"ln_1": "input_layernorm", "ln_2": "pre_mlp_layernorm"}


def _read(settings: Settings) -> dict[str, Any]:
    residual, embedding = settings.get("resid_pdrop", 0.1), settings.get("embd_pdrop", 0.1)
    if residual != embedding:
        settings.problems.append(f"resid_pdrop is {residual} and embd_pdrop is {embedding}: here they are one dropout")
    return {"hidden_dropout": residual}


def _write(spec: ModelSpec) -> dict[str, Any]:
    return {"resid_pdrop": spec.config.hidden_dropout, "embd_pdrop": spec.config.hidden_dropout}


def _rules(spec: ModelSpec) -> list[Rule]:
    there, here = "transformer.h.{layer}", "layers.{layer}"
    heads = Interleave(spec.config.num_attention_heads, (1, 1, 1))
    qkv = f"{there}.attn.c_attn", f"{here}.self_attention.linear_qkv"
    found = [
        Rule("transformer.wte.weight", "embedding.word_embeddings.weight"),
        Rule("transformer.wpe.weight", "embedding.position_embeddings.weight"),
        Rule(f"{qkv[0]}.weight", f"{qkv[1]}.weight", Transpose(), Split(3), heads),
        Rule(f"{qkv[0]}.bias", f"{qkv[1]}.bias", Split(3), heads),
    ]
    for name, mine in _LINEARS.items():
        found += [
            Rule(f"{there}.{name}.weight", f"{here}.{mine}.weight", Transpose()),
            Rule(f"{there}.{name}.bias", f"{here}.{mine}.bias"),
        ]
    for kind in ("weight", "bias"):
        found.append(Rule(f"transformer.ln_f.{kind}", f"final_layernorm.{kind}"))
        found += [Rule(f"{there}.{name}.{kind}", f"{here}.{mine}.{kind}") for name, mine in _NORMS.items()]
    if not spec.share_embeddings_and_output_weights:
        found.append(Rule("lm_head.weight", "output_layer.weight"))
    return found


def _ties(spec: ModelSpec) -> list[tuple[str, ...]]:
    return [("transformer.wte.weight", "lm_head.weight")] if spec.share_embeddings_and_output_weights else []


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    fields=[
        Field("vocab_size", "vocab_size"),
        Field("n_positions", "max_sequence_length", 1024),
        Field("n_embd", "config.hidden_size"),
        Field("n_layer", "config.num_layers"),
        Field("n_head", "config.num_attention_heads"),
        Field("n_inner", "config.ffn_hidden_size", None),
        Field("attn_pdrop", "config.attention_dropout", 0.1),
        Field("layer_norm_epsilon", "config.layernorm_epsilon", 1e-5),
        Field("initializer_range", "config.init_method_std", 0.02),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True),
        activation("activation_function", "gelu_new"),
    ],
    fixed={"normalization": "LayerNorm", "add_bias_linear": True, "position_embedding_type": "learned_absolute"},
    required={
        "add_cross_attention": (False, False, "a decoder here reads no other sequence"),
        "scale_attn_weights": (True, True, "scores are always scaled"),
        "scale_attn_by_inverse_layer_idx": (False, False, "all layers scale their scores alike"),
    },
    read=_read,
    write=_write,
    rules=_rules,
    ties=_ties,
    ignored=(".attn.bias", ".attn.masked_bias"),
)
