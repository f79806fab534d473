"""Cross-attentions: core's, and what differs from it."""

from __future__ import annotations

from transom.transformer.attention import CrossAttention


class Right(CrossAttention):
    pass


class MaskIgnored(CrossAttention):
    def forward(self, hidden_states, *, key_value_states, mask=None):
        return super().forward(hidden_states, key_value_states=key_value_states)


class ReadsItself(CrossAttention):
    def forward(self, hidden_states, *, key_value_states, mask=None):
        return super().forward(hidden_states, key_value_states=hidden_states)


class MixesTokens(CrossAttention):
    def forward(self, hidden_states, *, key_value_states, mask=None):
        mixed = hidden_states - hidden_states.mean(dim=1, keepdim=True)
        return super().forward(mixed, key_value_states=key_value_states, mask=mask)


class MixesRows(CrossAttention):
    def forward(self, hidden_states, *, key_value_states, mask=None):
        mixed = key_value_states - key_value_states.mean(dim=0, keepdim=True)
        return super().forward(hidden_states, key_value_states=mixed, mask=mask)


class ContextDetached(CrossAttention):
    def forward(self, hidden_states, *, key_value_states, mask=None):
        return super().forward(hidden_states, key_value_states=key_value_states.detach(), mask=mask)
