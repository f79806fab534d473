"""Core attention that is asked for the queries of a sequence share by share, as context-parallel ranks ask it."""

from __future__ import annotations

import torch

from transom.testing.kernels.scenario import scenario

__all__ = ["CONTEXT_SCENARIOS"]

_PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [4, 4, 4, 4, 4, 4, 7, 7]])
_PADDING = torch.tensor([[False] * 3 + [True] * 5, [True] * 6 + [False] * 2])

CONTEXT_SCENARIOS = (
    scenario(
        "shares",
        "ranks' shares of the queries give what the whole gives, and their gradients add up to its",
        "context_parallel causal bottom_right",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        sizes=(2, 8, 8),
        heads=(4, 4),
        shares=2,
        principal=True,
    ),
    scenario(
        "shares_grouped",
        "shares of queries with grouped heads, over three ranks",
        "context_parallel causal bottom_right",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        sizes=(1, 12, 12),
        heads=(4, 2),
        shares=3,
    ),
    scenario(
        "shares_window",
        "a window, of which the keys of a share's queries lie in other shares",
        "context_parallel causal bottom_right",
        mask={"causal": True},
        window=(2, 0),
        sees=lambda b, h, i, j: (j <= i) & (j >= i - 2),
        sizes=(2, 8, 8),
        shares=2,
    ),
    scenario(
        "shares_packed",
        "sequences in one row that lie across shares",
        "context_parallel causal bottom_right packed",
        mask={"causal": True, "query_segments": _PACKED},
        sees=lambda b, h, i, j: (_PACKED[b, i] == _PACKED[b, j]) & (j <= i),
        sizes=(2, 8, 8),
        shares=2,
    ),
    scenario(
        "shares_padded",
        "padding in some of the shares",
        "context_parallel causal bottom_right padding",
        mask={"causal": True, "key_padding": _PADDING},
        sees=lambda b, h, i, j: _PADDING[b, j] & (j <= i),
        sizes=(2, 8, 8),
        shares=2,
    ),
)
