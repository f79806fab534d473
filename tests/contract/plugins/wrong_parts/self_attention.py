"""Self-attentions: core's, and what differs from it."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from transom.transformer.attention import SelfAttention


class Right(SelfAttention):
    pass


class MaskIgnored(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        return super().forward(hidden_states, positions=positions, cache=cache)


class CausalOnly(SelfAttention):
    """Knows of nothing in a mask but causality."""

    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        mask = None if mask is None else dataclasses.replace(mask, key_padding=None, query_segments=None)
        return super().forward(hidden_states, mask=mask, positions=positions, cache=cache)


class PositionsIgnored(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        if cache is None:
            return super().forward(hidden_states, mask=mask)
        return super().forward(hidden_states, mask=mask, positions=positions - positions[0], cache=cache)


class CacheForgotten(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        return super().forward(hidden_states, mask=mask, positions=positions)


class MixesRows(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        mixed = hidden_states - hidden_states.mean(dim=0, keepdim=True)
        return super().forward(mixed, mask=mask, positions=positions, cache=cache)


class LooksAhead(SelfAttention):
    """Shifts its input by one token, the wrong way."""

    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        shifted = F.pad(hidden_states[:, 1:], (0, 0, 0, 1))
        return super().forward(shifted, mask=mask, positions=positions, cache=cache)


class DropoutInEval(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        output, bias = super().forward(hidden_states, mask=mask, positions=positions, cache=cache)
        return F.dropout(output, self.config.attention_dropout, True), bias


class NoDropout(SelfAttention):
    def __init__(self, config, submodules, layer_number, **others):
        super().__init__(config.replace(attention_dropout=0.0), submodules, layer_number, **others)
        self.core_attention.dropout = 0.0


class BlindRowsNan(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        output, bias = super().forward(hidden_states, mask=mask, positions=positions, cache=cache)
        s = hidden_states.shape[1]
        visible = None if mask is None or cache is not None else mask.as_bool(s, s, device=output.device)
        if visible is not None:
            output = output / visible.any(dim=-1)[:, 0, :, None]
        return output, bias


class QueryProjectionDetached(SelfAttention):
    def __init__(self, *args, **others):
        super().__init__(*args, **others)
        self.linear_qkv.register_forward_hook(lambda linear, inputs, outputs: (outputs[0].detach(), outputs[1]))


class Float32Output(SelfAttention):
    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        output, bias = super().forward(hidden_states, mask=mask, positions=positions, cache=cache)
        return output.float(), bias if bias is None else bias.to(torch.float32)
