"""Everything that a card declares, asked for at once: masks combine, and none replaces another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transom.slots.core_attention import MASK_FEATURES
from transom.testing.kernels.data_scenarios import INTERIOR, KEEP, PACKED
from transom.testing.kernels.scenario import Formula, Scenario

__all__ = ["combined"]

_PIECES: Mapping[str, tuple[Mapping[str, Any], Formula]] = {
    "causal": ({"causal": True}, lambda b, h, i, j: j <= i),
    "packed": ({"query_segments": PACKED}, lambda b, h, i, j: PACKED[b, i] == PACKED[b, j]),
    "padding": ({"key_padding": INTERIOR}, lambda b, h, i, j: INTERIOR[b, j]),
    "keep": ({"keep": KEEP}, lambda b, h, i, j: KEEP[b, h, i, j]),
    "window": ({"window": (3, 2)}, lambda b, h, i, j: (j >= i - 3) & (j <= i + 2)),
}


def combined(declared: frozenset[str]) -> Scenario:
    """Make the scenario in which everything that a card declares is asked for at once.

    Args:
        declared: features of the card.
    """
    pieces = {name: piece for name, piece in _PIECES.items() if name in declared}
    fields = {name: value for mask, _ in pieces.values() for name, value in mask.items()}
    others = declared & {"bias", "softcap", "gqa", "value_head_size"}

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        visible = torch.ones_like(b + h + i + j, dtype=torch.bool)
        for _, formula in pieces.values():
            visible = visible & formula(b, h, i, j)
        return visible

    return Scenario(
        "combined",
        f"all of it at once: {', '.join(sorted({*pieces, *others})) or 'nothing declared'}",
        frozenset(pieces) | (others & ({*MASK_FEATURES, "softcap"})),
        mask=fields,
        sees=sees,
        heads=(4, 2) if "gqa" in declared else (4, 4),
        head_sizes=(32, 16) if "value_head_size" in declared else (16, 16),
        config={"attn_logit_softcapping": 2.0} if "softcap" in declared else {},
        bias_shape=(1, 4) if "bias" in declared else None,
    )
