from __future__ import annotations

import torch
import transom
from transom.checkpoint.megatron import megatron_layout, megatron_names

SPEC = transom.load_spec(
    {
        "vocab_size": 11,
        "max_sequence_length": 8,
        "config": {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "position_embedding_type": "rope"},
    }
)


def canonical() -> dict[str, torch.Tensor]:
    outlines = transom.build(SPEC, device="meta").state_dict()
    return {name: torch.randn(outline.shape) for name, outline in outlines.items()}


def test_names_leave_out_what_is_no_weight_and_what_wraps_the_model() -> None:
    names = [
        "module.module.decoder.final_layernorm.weight",
        "decoder.layers.0.mlp.linear_fc1._extra_state",
        "rotary_pos_emb.inv_freq",
        "embedding.position_embeddings.weight",
        "position_embeddings.weight",
    ]
    assert megatron_names(names) == {
        "decoder.final_layernorm.weight": "module.module.decoder.final_layernorm.weight",
        "embedding.position_embeddings.weight": "embedding.position_embeddings.weight",
    }
    assert "position_embeddings.weight" in megatron_names(["position_embeddings.weight"])


def test_layout_is_undone_in_every_form() -> None:
    wanted = canonical()
    plain = megatron_layout(SPEC, list(wanted), []).backward(wanted)
    assert "decoder.layers.1.self_attention.linear_qkv.weight" in plain
    assert "decoder.final_layernorm.bias" in plain
    fused = ["decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "decoder.layers.mlp.linear_fc2.weight"]
    layout = megatron_layout(SPEC, list(wanted), fused)
    mixed = layout.backward(wanted)
    assert mixed["decoder.layers.mlp.linear_fc2.weight"].shape == (2, 8, 32)
    assert "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight" in mixed
    assert "decoder.layers.1.input_layernorm.weight" not in mixed
    again = layout.forward(mixed)
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_layout_of_an_encoder_decoder_keeps_its_names() -> None:
    data = SPEC.to_dict() | {"model": "t5"}
    data["config"]["position_embedding_type"] = "learned_absolute"
    spec = transom.load_spec(data)
    names = transom.build(spec, device="meta").state_dict()
    layout = megatron_layout(spec, list(names), list(names))
    assert set(layout.backward(names)) == set(names)
