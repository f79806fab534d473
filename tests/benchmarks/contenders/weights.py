"""The weights that all contenders have, in the form in which `transformers` has them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.monolith import Shape
from benchmarks.monolith_t5 import T5Shape

__all__ = ["hugging_face_llama", "hugging_face_t5", "saved"]


def hugging_face_llama(shape: Shape) -> Any:
    """Make a Llama of `transformers`, always with the same random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "max_position_embeddings": shape.length,
        "rms_norm_eps": shape.eps,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**fields))


def hugging_face_t5(shape: T5Shape) -> Any:
    """Make a T5 1.1 of `transformers`, always with the same random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    fields: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "d_model": shape.hidden,
        "d_kv": shape.head_size,
        "d_ff": shape.ffn,
        "num_layers": shape.layers,
        "num_decoder_layers": shape.layers,
        "num_heads": shape.heads,
        "relative_attention_num_buckets": shape.buckets,
        "relative_attention_max_distance": shape.max_distance,
        "layer_norm_epsilon": shape.eps,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**fields))
        model.lm_head.weight = torch.nn.Parameter(torch.randn(shape.vocab, shape.hidden) * shape.hidden**-0.5)
    return model


@contextmanager
def saved(model: Any) -> Iterator[Path]:
    """Save a model of `transformers` into a folder that is there for a while."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)
