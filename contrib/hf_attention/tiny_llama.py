"""Trains tiny-llama as a model of transformers, its attention computed by Transom: ``python tiny_llama.py``."""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transom.text.byte_tokenizer import ByteTokenizer
from transom.training.default_corpus import default_text
from transom_hf_attention import register

LENGTH, BATCH = 256, 8


def tiny_llama(core_attention: str) -> LlamaForCausalLM:
    """Make transformers' Llama of tiny-llama's sizes, its attention computed by the named core attention."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    (name,) = register(core_attention)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(name)
    return model


def train(core_attention: str, steps: int) -> list[float]:
    """Train on the English text that comes with Python; give the loss of every step."""
    torch.manual_seed(0)
    model = tiny_llama(core_attention)
    tokens = torch.from_numpy(ByteTokenizer().encode(default_text()).astype("int64"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,)).tolist()
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts])  # [b, s]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}/{steps}  loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--core-attention", default="torch_dot_product | dot_product", metavar="NAME")
    given = parser.parse_args()
    train(given.core_attention, given.steps)
