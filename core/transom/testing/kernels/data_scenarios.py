"""Core attention with masks that say of every token who may see it, with biases, soft-caps and sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from transom.testing.kernels.scenario import Scenario, scenario

__all__ = ["DATA_SCENARIOS", "INTERIOR", "KEEP", "PACKED"]

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
INTERIOR = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1]]).bool()
WHOLE_ROW = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1]]).bool()
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1], [4, 4, 7, 7, 7, 7]])
PADDED_PACK = torch.tensor([[0, 0, 1, 1, -1, -1], [-1, 3, 3, 3, 3, 3]])
SCATTERED = torch.tensor([[0, 1, 0, 1, 0, 1], [2, 2, 5, 2, 5, 5]])
FOUR_QUERIES = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 5]])
SIX_KEYS = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]])
SEEN_IN_ORDER = torch.tensor(  # the last query of a segment sees its last key
    [
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0]],
        [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
    ]
).bool()
RING = torch.tensor([8, 9, 4, 5, 6, 7])
SLOTS = torch.tensor([[0, 1, 2, 3, -1, -1], [3, 4, 5, 0, 1, 2]])
ROWS_AT = torch.tensor([[2, 3], [4, 5]])
PADDED_QUERIES = torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)


def _keep(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6


KEEP = _keep(2, 4, 6, 6)
KEEP_FOR_ALL = _keep(1, 1, 6, 6) | torch.eye(6, dtype=torch.bool)
KEEP_WITHOUT_ROWS = _keep(2, 1, 6, 6) & (torch.arange(6) % 3 != 1)[None, None, :, None]


def _padding(name: str, where: str, padding: Tensor) -> tuple[Scenario, Scenario]:
    both = scenario(
        f"padding_{name}",
        f"keys that are padding {where} are hidden",
        "padding",
        mask={"key_padding": padding},
        sees=lambda b, h, i, j: padding[b, j],
        principal=name == "right",
    )
    causal = scenario(
        f"padding_{name}_causal",
        f"padding {where} and causality combine",
        "padding causal",
        mask={"key_padding": padding, "causal": True},
        sees=lambda b, h, i, j: padding[b, j] & (j <= i),
    )
    return both, causal


PADDINGS = (
    *_padding("left", "on the left", LEFT),
    *_padding("right", "on the right", RIGHT),
    *_padding("interior", "in the middle", INTERIOR),
    *_padding("whole_row", "in a whole row, whose output is zeros,", WHOLE_ROW),
)

SEGMENTS = (
    scenario(
        "packed",
        "a query sees only its own sequence",
        "packed",
        mask={"query_segments": PACKED},
        sees=lambda b, h, i, j: PACKED[b, i] == PACKED[b, j],
        principal=True,
    ),
    scenario(
        "packed_causal",
        "causality within packed sequences",
        "packed causal",
        mask={"query_segments": PACKED, "causal": True},
        sees=lambda b, h, i, j: (PACKED[b, i] == PACKED[b, j]) & (j <= i),
    ),
    scenario(
        "packed_padded",
        "tokens of a negative segment see nothing and are seen by none",
        "packed",
        mask={"query_segments": PADDED_PACK},
        sees=lambda b, h, i, j: (PADDED_PACK[b, i] == PADDED_PACK[b, j]) & (PADDED_PACK[b, i] >= 0),
    ),
    scenario(
        "packed_scattered",
        "segments need not lie together",
        "packed",
        mask={"query_segments": SCATTERED},
        sees=lambda b, h, i, j: SCATTERED[b, i] == SCATTERED[b, j],
    ),
    scenario(
        "packed_cross",
        "queries of a segment see the keys of the same segment in another sequence",
        "packed cross",
        mask={"query_segments": FOUR_QUERIES, "key_segments": SIX_KEYS},
        sees=lambda b, h, i, j: FOUR_QUERIES[b, i] == SIX_KEYS[b, j],
        sizes=(2, 4, 6),
    ),
    scenario(
        "packed_cross_causal",
        "within each segment the last query sees the last key",
        "packed cross causal bottom_right",
        mask={"query_segments": FOUR_QUERIES, "key_segments": SIX_KEYS, "causal": True},
        sees=lambda b, h, i, j: SEEN_IN_ORDER[b, i, j],
        sizes=(2, 4, 6),
    ),
    scenario(
        "packed_window",
        "a window within packed sequences",
        "packed causal",
        mask={"query_segments": PACKED, "causal": True},
        window=(1, 0),
        sees=lambda b, h, i, j: (PACKED[b, i] == PACKED[b, j]) & (j <= i) & (j >= i - 1),
    ),
)

POSITIONS = (
    scenario(
        "positions_ring",
        "keys of a ring buffer stand at positions that are out of order",
        "positions causal",
        mask={"causal": True, "query_positions": [8, 9], "key_positions": RING},
        sees=lambda b, h, i, j: RING[j] <= torch.tensor([8, 9])[i],
        sizes=(2, 2, 6),
    ),
    scenario(
        "positions_rows",
        "every row has positions of its own, and empty slots are hidden",
        "positions causal",
        mask={"causal": True, "query_positions": ROWS_AT, "key_positions": SLOTS},
        sees=lambda b, h, i, j: (SLOTS[b, j] <= ROWS_AT[b, i]) & (SLOTS[b, j] >= 0),
        sizes=(2, 2, 6),
    ),
    scenario(
        "positions_padded_queries",
        "a query at a negative position sees nothing and yields zeros",
        "positions causal",
        mask={"causal": True, "query_positions": PADDED_QUERIES},
        sees=lambda b, h, i, j: (j <= PADDED_QUERIES[b, i]) & (PADDED_QUERIES[b, i] >= 0),
    ),
    scenario(
        "positions_window",
        "a window counts in positions",
        "positions causal",
        mask={"causal": True, "query_positions": [8, 9], "key_positions": RING},
        window=(2, 0),
        sees=lambda b, h, i, j: (RING[j] <= torch.tensor([8, 9])[i]) & (RING[j] >= torch.tensor([6, 7])[i]),
        sizes=(2, 2, 6),
    ),
)

KEEPS = (
    scenario(
        "keep",
        "an arbitrary mask for every row and head",
        "keep",
        mask={"keep": KEEP},
        sees=lambda b, h, i, j: KEEP[b, h, i, j],
        principal=True,
    ),
    scenario(
        "keep_for_all",
        "an arbitrary mask that all rows and heads share",
        "keep",
        mask={"keep": KEEP_FOR_ALL},
        sees=lambda b, h, i, j: KEEP_FOR_ALL[0, 0, i, j],
    ),
    scenario(
        "keep_without_rows",
        "queries that see nothing yield zeros, and no gradient goes through them",
        "keep",
        mask={"keep": KEEP_WITHOUT_ROWS},
        sees=lambda b, h, i, j: KEEP_WITHOUT_ROWS[b, 0, i, j],
        principal=True,
    ),
    scenario(
        "keep_causal",
        "an arbitrary mask and causality combine: neither replaces the other",
        "keep causal",
        mask={"keep": KEEP, "causal": True},
        sees=lambda b, h, i, j: KEEP[b, h, i, j] & (j <= i),
    ),
)

BIASES = (
    scenario("bias", "a bias of every row and head is added", "bias", mask={}, bias_shape=(2, 4), principal=True),
    scenario("bias_shared", "a bias that all rows share is added", "bias", mask={}, bias_shape=(1, 4)),
    scenario(
        "bias_causal",
        "a bias is added where causality hides nothing",
        "bias causal",
        mask={"causal": True},
        bias_shape=(1, 4),
        sees=lambda b, h, i, j: j <= i,
    ),
    scenario(
        "bias_blind_rows",
        "a bias beside rows that see nothing",
        "bias keep",
        mask={"keep": KEEP_WITHOUT_ROWS},
        bias_shape=(2, 1),
        sees=lambda b, h, i, j: KEEP_WITHOUT_ROWS[b, 0, i, j],
    ),
    scenario("bias_learned", "a gradient reaches the bias", "bias_grad", mask={}, bias_shape=(1, 4)),
    scenario(
        "bias_learned_causal",
        "a gradient reaches the bias where causality hides nothing",
        "bias_grad causal",
        mask={"causal": True},
        bias_shape=(2, 1),
        sees=lambda b, h, i, j: j <= i,
    ),
    scenario(
        "alibi",
        "a bias that falls with distance, one slope a head",
        "alibi causal",
        mask={"causal": True, "alibi_slopes": SLOPES},
        sees=lambda b, h, i, j: j <= i,
        adds=lambda b, h, i, j: -SLOPES[h] * (i - j).abs(),
        principal=True,
    ),
    scenario(
        "alibi_fewer_queries",
        "ALiBi counts distances from positions that are aligned bottom-right",
        "alibi causal bottom_right",
        mask={"causal": True, "alibi_slopes": SLOPES},
        sizes=(2, 3, 7),
        sees=lambda b, h, i, j: j <= i + 4,
        adds=lambda b, h, i, j: -SLOPES[h] * (i + 4 - j).abs(),
    ),
)

SOFTMAX = (
    scenario(
        "softcap",
        "scores are soft-capped",
        "softcap",
        config={"attn_logit_softcapping": 2.0},
        magnitude=3.0,
        principal=True,
    ),
    scenario(
        "softcap_bias",
        "soft-capping comes before the bias and the mask",
        "softcap bias causal",
        config={"attn_logit_softcapping": 2.0},
        mask={"causal": True},
        bias_shape=(1, 4),
        sees=lambda b, h, i, j: j <= i,
        magnitude=3.0,
    ),
    scenario(
        "sink_off_by_one",
        "one is added to the softmax's denominator",
        "sink_off_by_one causal",
        config={"softmax_type": "off-by-one"},
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        principal=True,
    ),
    scenario(
        "sink_off_by_one_large",
        "the sink beside scores in the hundreds, of both signs",
        "sink_off_by_one",
        config={"softmax_type": "off-by-one"},
        magnitude=8.0,
    ),
    scenario(
        "sink_learned",
        "a learned logit per head joins the denominator, and gets its gradient",
        "sink_learnable causal",
        config={"softmax_type": "learnable"},
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        principal=True,
    ),
)

DATA_SCENARIOS = (*PADDINGS, *SEGMENTS, *POSITIONS, *KEEPS, *BIASES, *SOFTMAX)
