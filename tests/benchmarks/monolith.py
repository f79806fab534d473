"""A Llama in one plain file, as somebody would write it by hand: what every other contender is compared with.

No framework and no options; grouped attention on torch's own kernel, fused projections, a static cache. Its parameters
are named as those of `transformers`' Llama are, projections fused: `load` takes such a state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama.

    Args:
        vocab: v.
        hidden: h.
        layers: number of layers.
        heads: n, query heads.
        groups: g, key/value heads.
        ffn: inner width of the gated MLP.
        length: longest sequence.
        base: of the rotary angles.
        eps: of the norms; small, because x-transformers' have none.
    """

    vocab: int = 8192
    hidden: int = 512
    layers: int = 8
    heads: int = 8
    groups: int = 4
    ffn: int = 1408
    length: int = 2048
    base: float = 10000.0
    eps: float = 1e-8

    @property
    def head_size(self) -> int:
        """d."""
        return self.hidden // self.heads


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        h, d = shape.hidden, shape.head_size
        self.input_norm = nn.Parameter(torch.ones(h))
        self.qkv = nn.Linear(h, (shape.heads + 2 * shape.groups) * d, bias=False)
        self.out = nn.Linear(h, h, bias=False)
        self.post_norm = nn.Parameter(torch.ones(h))
        self.gate_up = nn.Linear(h, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, h, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None, start: int) -> Tensor:
        shape = self.shape
        b, s, h = x.shape
        normed = F.rms_norm(x, (h,), self.input_norm, shape.eps)
        heads = self.qkv(normed).view(b, s, -1, shape.head_size).transpose(1, 2)  # [b, n + 2g, s, d]
        query, key, value = heads.split([shape.heads, shape.groups, shape.groups], dim=1)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            cache[0][:b, :, start : start + s] = key
            cache[1][:b, :, start : start + s] = value
            key, value = cache[0][:b, :, : start + s], cache[1][:b, :, : start + s]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=s > 1, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, s, h))
        gate, up = self.gate_up(F.rms_norm(x, (h,), self.post_norm, shape.eps)).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate) * up)
        return x + down


class Monolith(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        angles = torch.outer(
            torch.arange(shape.length, dtype=torch.float32),
            shape.base ** (-torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size),
        )
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)
        self.caches: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, tokens: Tensor, labels: Tensor | None = None, start: int = 0, last_only: bool = False) -> Tensor:
        """Map ids ``[b, s]`` to logits ``[b, s, v]``, or with labels to the mean loss."""
        stop = start + tokens.shape[1]
        x = self.embedding(tokens)
        cos, sin = self.cos[start:stop].to(x.dtype), self.sin[start:stop].to(x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, self.caches[i] if self.caches else None, start)
        x = x[:, -1:] if last_only else x
        logits: Tensor = self.head(F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.eps))
        if labels is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def setup_caches(self, batch: int, length: int) -> None:
        """Make room for so many rows of so many tokens."""
        size = (batch, self.shape.groups, length, self.shape.head_size)
        self.caches = [(self.norm.new_zeros(size), self.norm.new_zeros(size)) for _ in self.blocks]

    def matrices(self) -> list[Tensor]:
        """What every token that is decoded must be multiplied with."""
        return [each.weight for each in self.modules() if isinstance(each, nn.Linear)]

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> Monolith:
        """Take the weights of a Llama of `transformers`."""
        self.embedding.weight.copy_(state["model.embed_tokens.weight"])
        self.head.weight.copy_(state["lm_head.weight"])
        self.norm.copy_(state["model.norm.weight"])
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            own = {name.removeprefix(f"model.layers.{i}."): each for name, each in state.items()}
            block.qkv.weight.copy_(torch.cat([own[f"self_attn.{n}_proj.weight"] for n in "qkv"]))
            block.out.weight.copy_(own["self_attn.o_proj.weight"])
            block.gate_up.weight.copy_(torch.cat([own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]]))
            block.down.weight.copy_(own["mlp.down_proj.weight"])
            block.input_norm.copy_(own["input_layernorm.weight"])
            block.post_norm.copy_(own["post_attention_layernorm.weight"])
        return self


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
