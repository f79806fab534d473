from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from transom import ModelSpec
from transom.checkpoint.torchtune import torchtune_layout
from transom.errors import CheckpointError

CASE = Path(__file__).parents[2] / "data" / "torchtune" / "a_mha.pt"


def spec(**config: Any) -> ModelSpec:
    c = torch.load(CASE, weights_only=True)["config"]
    fields = {
        "num_layers": c["num_layers"],
        "hidden_size": c["embed_dim"],
        "num_attention_heads": c["num_heads"],
        "num_query_groups": c["num_kv_heads"],
        "ffn_hidden_size": c["hidden_dim"],
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
    }
    data = {"vocab_size": c["vocab_size"], "max_sequence_length": c["max_seq_len"], "config": fields | config}
    return transom.load_spec(data)


@pytest.mark.parametrize("interleaved", [True, False])
def test_layout_leads_to_the_models_weights_and_back(interleaved: bool) -> None:
    state, described = torch.load(CASE, weights_only=True)["state_dict"], spec(rotary_interleaved=interleaved)
    layout = torchtune_layout(described)
    canonical = layout.forward(state)
    wanted = transom.build(described, device="meta").state_dict()
    assert {name: t.shape for name, t in canonical.items()} == {name: t.shape for name, t in wanted.items()}
    back = layout.backward(canonical)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_layout_reorders_rows_of_queries_and_keys_alone_where_rope_is_of_halves() -> None:
    state = torch.load(CASE, weights_only=True)["state_dict"]
    pairs = torchtune_layout(spec(rotary_interleaved=True)).forward(state)
    halves = torchtune_layout(spec()).forward(state)
    changed = [name for name in pairs if not torch.equal(pairs[name], halves[name])]
    assert changed == [f"layers.{i}.self_attention.linear_qkv.weight" for i in range(3)]
    config = spec().config
    groups, d = config.num_query_groups, config.kv_channels
    values = [x[changed[0]].view(groups, -1, d, config.hidden_size)[:, -1] for x in (pairs, halves)]
    assert torch.equal(*values)


def test_layout_refuses_what_torchtune_has_no_llama_for() -> None:
    with pytest.raises(CheckpointError, match="is no model that torchtune builds as Llama") as caught:
        torchtune_layout(spec(normalization="LayerNorm", rotary_percent=0.5))
    assert caught.value.problems == (
        "normalization is 'LayerNorm', and is 'RMSNorm' there",
        "rotary_percent is 0.5, and is 1.0 there",
    )
