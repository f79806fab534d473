"""Tiny random models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transom_hf_attention import register

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "gemma2": ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0}),
    "qwen3": ("Qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
}


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def model() -> Callable[..., Any]:
    """Make a causal language model of a family, with the same weights every time."""

    def make(family: str, attention: str = "eager", **changes: Any) -> Any:
        name, own = FAMILIES[family]
        config = getattr(transformers, f"{name}Config")(**(SIZES | own | changes))
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=attention)
        made.generation_config.eos_token_id = None
        return made.eval()

    return make
