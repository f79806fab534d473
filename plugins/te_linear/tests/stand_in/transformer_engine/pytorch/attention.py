"""Core attention by its definition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .modules import Base

told = []
"""The kind of mask of every call."""


class DotProductAttention(Base):
    def __init__(self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.0,
                 qkv_format="sbhd", attn_mask_type="causal", layer_number=None, softmax_scale=None,
                 softmax_type="vanilla"):  # fmt: skip
        super().__init__()
        self.heads, self.groups, self.dropout = num_attention_heads, num_gqa_groups, attention_dropout
        self.scale = 1 / math.sqrt(kv_channels) if softmax_scale is None else softmax_scale
        self.softmax_type = softmax_type
        if softmax_type == "learnable":
            self.fill("softmax_offset", (num_attention_heads,), torch.float32, "cpu")

    def forward(self, query_layer=None, key_layer=None, value_layer=None, attention_mask=None, qkv_format=None,
                cu_seqlens_q=None, cu_seqlens_kv=None, max_seqlen_q=None, max_seqlen_kv=None, attn_mask_type=None,
                window_size=None, bottom_right_diagonal=None):  # fmt: skip
        told.append(attn_mask_type)
        causal = "causal" in attn_mask_type
        assert window_size[1] == 0 if causal else (window_size[0] < 0) == (window_size[1] < 0), window_size
        if qkv_format == "thd":
            assert attn_mask_type.startswith("padding")
            out = torch.full_like(query_layer, torch.nan)
            queries, keys = cu_seqlens_q.tolist(), cu_seqlens_kv.tolist()
            for a, b, c, d in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
                hidden = self._hidden(b - a, d - c, causal, window_size, out.device)
                q, k, v = query_layer[None, a:b], key_layer[None, c:d], value_layer[None, c:d]
                out = out.index_copy(0, torch.arange(a, b, device=out.device), self._attend(q, k, v, hidden)[0])
            return out.flatten(-2)
        assert qkv_format == "bshd"
        s, t = query_layer.shape[1], key_layer.shape[1]
        assert (attention_mask is not None) == (attn_mask_type == "arbitrary")
        hidden = attention_mask
        if hidden is None:
            hidden = self._hidden(s, t, causal, window_size, query_layer.device)
        return self._attend(query_layer, key_layer, value_layer, hidden).flatten(-2)

    def _hidden(self, s, t, causal, window, device):
        distance = torch.arange(t, device=device) - (torch.arange(s, device=device)[:, None] + t - s)
        hidden = distance > 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            hidden = hidden | (distance < -window[0])
        if not causal and window[1] >= 0:
            hidden = hidden | (distance > window[1])
        return hidden

    def _attend(self, q, k, v, hidden):
        n, g = q.shape[2], k.shape[2]
        k, v = (x.float().repeat_interleave(n // g, dim=2) for x in (k, v))
        scores = torch.einsum("bsnd,btnd->bnst", q.float(), k) * self.scale
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.softmax_type != "vanilla":
            learned = self.softmax_type == "learnable"
            offset = self.softmax_offset.float() if learned else scores.new_zeros(n)
            scores = torch.cat([scores, offset.view(1, n, 1, 1).expand(len(q), n, q.shape[1], 1)], dim=-1)
        weights = scores.softmax(-1)[..., : k.shape[1]]
        weights = F.dropout(weights, self.dropout, self.training)
        return torch.einsum("bnst,btnd->bsnd", weights, v).to(q.dtype)
