"""A T5 1.1 in one plain file, as somebody would write it by hand: what other T5s are compared with.

Parameters are named freely, projections fused; `load` takes a state dict of `transformers`' T5. It encodes, and decodes
over a static cache; what was read is projected once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class T5Shape:
    """Sizes of a T5 with as many layers in its encoder as in its decoder.

    Args:
        vocab: v.
        hidden: h.
        layers: of each stack.
        heads: n.
        ffn: inner width of the gated MLP.
        buckets: of distances.
        max_distance: from which on all are in the last bucket.
        eps: of the norms.
    """

    vocab: int = 8192
    hidden: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 1024
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @property
    def head_size(self) -> int:
        """d."""
        return self.hidden // self.heads


class Layer(nn.Module):
    def __init__(self, shape: T5Shape, crosses: bool) -> None:
        super().__init__()
        self.shape = shape
        h = shape.hidden
        self.norm = nn.Parameter(torch.ones(h))
        self.qkv = nn.Linear(h, 3 * h, bias=False)
        self.out = nn.Linear(h, h, bias=False)
        if crosses:
            self.cross_norm = nn.Parameter(torch.ones(h))
            self.cross_query = nn.Linear(h, h, bias=False)
            self.cross_key_value = nn.Linear(h, 2 * h, bias=False)
            self.cross_out = nn.Linear(h, h, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(h))
        self.gate_up = nn.Linear(h, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, h, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.shape.head_size).transpose(1, 2)  # [b, s, k d] -> [b, k, s, d]

    def normed(self, x: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.hidden,), scale, self.shape.eps)

    def forward(self, x: Tensor, bias: Tensor, cache: tuple[Tensor, ...] | None = None, start: int = 0) -> Tensor:
        query, key, value = self.heads(self.qkv(self.normed(x, self.norm))).chunk(3, dim=1)
        if cache is not None:
            stop = start + x.shape[1]
            cache[0][:, :, start:stop], cache[1][:, :, start:stop] = key, value
            key, value = cache[0][:, :, :stop], cache[1][:, :, :stop]
        x = x + self.out(attend(query, key, value, bias))
        if cache is not None:
            query = self.heads(self.cross_query(self.normed(x, self.cross_norm)))
            x = x + self.cross_out(attend(query, cache[2], cache[3]))
        gate, up = self.gate_up(self.normed(x, self.mlp_norm)).chunk(2, dim=-1)
        down: Tensor = self.down(F.gelu(gate, approximate="tanh") * up)
        return x + down


class MonolithT5(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.encoder = nn.ModuleList(Layer(shape, crosses=False) for _ in range(shape.layers))
        self.decoder = nn.ModuleList(Layer(shape, crosses=True) for _ in range(shape.layers))
        self.encoder_bias = nn.Embedding(shape.buckets, shape.heads)
        self.decoder_bias = nn.Embedding(shape.buckets, shape.heads)
        self.encoder_norm = nn.Parameter(torch.ones(shape.hidden))
        self.decoder_norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.caches: list[tuple[Tensor, ...]] | None = None

    def encode(self, tokens: Tensor) -> Tensor:
        """Map ids ``[b, t]`` to hidden states ``[b, t, h]``."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        distance = positions - positions[:, None]  # [t, t]
        bias = self.encoder_bias(buckets(distance, self.shape, both=True)).permute(2, 0, 1)[None]
        x = self.embedding(tokens)
        for layer in self.encoder:
            x = layer(x, bias)
        return F.rms_norm(x, (self.shape.hidden,), self.encoder_norm, self.shape.eps)

    def decode(self, tokens: Tensor, start: int) -> Tensor:
        """Map the id ``[b, 1]`` at a position to logits ``[b, 1, v]``, over the caches."""
        assert self.caches is not None
        distance = torch.arange(start + 1, device=tokens.device)[None] - start  # [1, t]
        bias = self.decoder_bias(buckets(distance, self.shape, both=False)).permute(2, 0, 1)[None]
        x = self.embedding(tokens)
        for layer, cache in zip(self.decoder, self.caches, strict=True):
            x = layer(x, bias, cache, start)
        logits: Tensor = self.head(F.rms_norm(x, (self.shape.hidden,), self.decoder_norm, self.shape.eps))
        return logits

    def setup_caches(self, hidden: Tensor, length: int) -> None:
        """Make room for what is written, and keep what was read as keys and values."""
        size = (len(hidden), self.shape.heads, length, self.shape.head_size)
        self.caches = [
            (
                hidden.new_zeros(size),
                hidden.new_zeros(size),
                *layer.heads(layer.cross_key_value(hidden)).chunk(2, dim=1),
            )
            for layer in self.decoder
            if isinstance(layer, Layer)
        ]

    def matrices(self) -> list[Tensor]:
        """What every token that is written must be multiplied with."""
        linears = [(name, each) for name, each in self.decoder.named_modules() if isinstance(each, nn.Linear)]
        return [each.weight for name, each in [*linears, ("head", self.head)] if "cross_key_value" not in name]

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> MonolithT5:
        """Take the weights of a T5 of `transformers`."""
        self.embedding.weight.copy_(state["shared.weight"])
        self.head.weight.copy_(state["lm_head.weight"])
        for name, stack in {"encoder": self.encoder, "decoder": self.decoder}.items():
            bias = state[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
            getattr(self, f"{name}_bias").weight.copy_(bias)
            getattr(self, f"{name}_norm").copy_(state[f"{name}.final_layer_norm.weight"])
            for i, layer in enumerate(stack):
                assert isinstance(layer, Layer)
                prefix = f"{name}.block.{i}.layer."
                load_layer(layer, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return self


def load_layer(layer: Layer, own: Mapping[str, Tensor]) -> None:
    layer.norm.copy_(own["0.layer_norm.weight"])
    layer.qkv.weight.copy_(torch.cat([own[f"0.SelfAttention.{n}.weight"] for n in "qkv"]))
    layer.out.weight.copy_(own["0.SelfAttention.o.weight"])
    crosses = "1.EncDecAttention.q.weight" in own
    if crosses:
        layer.cross_norm.copy_(own["1.layer_norm.weight"])
        layer.cross_query.weight.copy_(own["1.EncDecAttention.q.weight"])
        layer.cross_key_value.weight.copy_(torch.cat([own[f"1.EncDecAttention.{n}.weight"] for n in "kv"]))
        layer.cross_out.weight.copy_(own["1.EncDecAttention.o.weight"])
    mlp = "2" if crosses else "1"
    layer.mlp_norm.copy_(own[f"{mlp}.layer_norm.weight"])
    layer.gate_up.weight.copy_(torch.cat([own[f"{mlp}.DenseReluDense.wi_{n}.weight"] for n in "01"]))
    layer.down.weight.copy_(own[f"{mlp}.DenseReluDense.wo.weight"])


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    return attended.transpose(1, 2).flatten(2)  # [b, n, s, d] -> [b, s, h]


def buckets(distance: Tensor, shape: T5Shape, *, both: bool) -> Tensor:
    """Sort distances, key - query, into T5's buckets: exact when near, logarithmic when far."""
    count = shape.buckets // 2 if both else shape.buckets
    later = (distance > 0) * count if both else 0
    away = distance.abs() if both else -distance.clamp(max=0)
    exact = count // 2
    share = torch.log(away.clamp(min=1).float() / exact) / math.log(shape.max_distance / exact)
    far = (exact + (share * (count - exact)).long()).clamp(max=count - 1)
    return later + torch.where(away < exact, away, far)
