"""MLPs: core's, and what differs from it."""

from __future__ import annotations

import torch
from torch import nn
from transom.transformer import parts
from transom.transformer.mlp import MLP


class Right(MLP):
    pass


class SeesOtherTokens(MLP):
    def forward(self, hidden_states, per_token_scale=None):
        return super().forward(hidden_states - hidden_states.mean(dim=1, keepdim=True), per_token_scale)


class ScaleIgnored(MLP):
    def forward(self, hidden_states, per_token_scale=None):
        return super().forward(hidden_states)


class ScaleAveraged(MLP):
    def forward(self, hidden_states, per_token_scale=None):
        scale = per_token_scale
        return super().forward(
            hidden_states, None if scale is None else scale.mean(dim=1, keepdim=True).expand_as(scale)
        )


class UnusedParameter(MLP):
    def __init__(self, config, submodules, **others):
        super().__init__(config, submodules, **others)
        self.spare = nn.Parameter(torch.zeros(3, dtype=getattr(torch, config.params_dtype)))


class WidthIgnored(MLP):
    """Announces the width it is given and builds the config's."""

    def __init__(self, config, submodules, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
        super().__init__(config, submodules, is_expert, input_size, None, tp_group)


class AnnouncesAnotherBias(MLP):
    @classmethod
    def parts(cls, request):
        found = dict(super().parts(request))
        width = request.config.ffn_hidden_size
        found["linear_fc2"] = parts.row_linear(request, width, request.config.hidden_size, bias=True)
        return found


class OutputOnly(MLP):
    def forward(self, hidden_states, per_token_scale=None):
        output, bias = super().forward(hidden_states, per_token_scale)
        return output if bias is None else output + bias


class AddsToItsInput(MLP):
    def forward(self, hidden_states, per_token_scale=None):
        output = super().forward(hidden_states, per_token_scale)
        hidden_states.data += 1
        return output
