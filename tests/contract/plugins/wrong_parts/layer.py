"""Layers: core's, and what differs from it."""

from __future__ import annotations

import torch.nn.functional as F
from transom.transformer.transformer_layer import TransformerLayer


class Right(TransformerLayer):
    pass


class LooksAhead(TransformerLayer):
    def forward(self, hidden_states, **others):
        hidden, context = super().forward(hidden_states, **others)
        return hidden + F.pad(hidden_states[:, 1:], (0, 0, 0, 1)), context


class MaskForgotten(TransformerLayer):
    def forward(self, hidden_states, *, mask=None, **others):
        return super().forward(hidden_states, **others)


class CacheForgotten(TransformerLayer):
    def forward(self, hidden_states, *, cache=None, **others):
        return super().forward(hidden_states, **others)


class ContextMaskForgotten(TransformerLayer):
    def forward(self, hidden_states, *, context_mask=None, **others):
        return super().forward(hidden_states, **others)


class ContextSwallowed(TransformerLayer):
    def forward(self, hidden_states, **others):
        return super().forward(hidden_states, **others)[0], None


class ContextIgnored(TransformerLayer):
    def forward(self, hidden_states, *, context=None, context_mask=None, **others):
        own = None if context is None else hidden_states
        return super().forward(hidden_states, context=own, **others)[0], context


class AlwaysTraining(TransformerLayer):
    def train(self, mode=True):
        return super().train(True)
