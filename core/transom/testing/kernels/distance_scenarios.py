"""Core attention without a mask, and with masks that count positions: causality, prefixes, windows."""

from __future__ import annotations

import torch

from transom.testing.kernels.scenario import scenario

__all__ = ["DISTANCE_SCENARIOS"]

INTERIOR = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1]]).bool()
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1], [4, 4, 7, 7, 7, 7]])
PREFIXES = torch.tensor([0, 4])
WITHIN = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])  # positions inside the segments of PACKED

PLAIN = (
    scenario("everyone", "without a mask every query sees every key", "", principal=True),
    scenario("one_token", "a single query and a single key", "", sizes=(1, 1, 1)),
    scenario("long", "more tokens than fit into one block of a kernel", "", sizes=(1, 131, 131), heads=(2, 2)),
    scenario("large_scores", "scores in the hundreds do not overflow the softmax", "", magnitude=12.0),
    scenario("scale", "softmax_scale replaces 1/sqrt(d)", "", scale=0.1),
    scenario(
        "layer_scaling",
        "apply_query_key_layer_scaling changes no result",
        "",
        config={"apply_query_key_layer_scaling": True},
    ),
    scenario("more_keys", "more keys than queries, of another sequence", "cross", sizes=(2, 3, 7)),
    scenario("more_queries", "more queries than keys, of another sequence", "cross", sizes=(2, 7, 3)),
    scenario("grouped", "head i reads group i // (n // g)", "", heads=(6, 2), principal=True),
    scenario("one_group", "all heads read one key/value head", "", heads=(4, 1)),
    scenario("narrow_values", "values have a smaller head size than keys", "", head_sizes=(32, 16)),
    scenario("wide_values", "values have a larger head size than keys", "", head_sizes=(16, 32)),
)

CAUSAL = (
    scenario(
        "causal",
        "a query sees no later key",
        "causal",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        principal=True,
    ),
    scenario(
        "causal_long",
        "causality across blocks of a kernel",
        "causal",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        sizes=(1, 131, 131),
        heads=(2, 2),
    ),
    scenario(
        "causal_grouped",
        "causality with grouped heads",
        "causal",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i,
        heads=(6, 2),
    ),
    scenario(
        "causal_fewer_queries",
        "with fewer queries than keys, the last query sees the last key",
        "causal bottom_right",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i + 4,
        sizes=(2, 3, 7),
        principal=True,
    ),
    scenario(
        "causal_one_query",
        "a single query, the last, sees every key",
        "causal bottom_right",
        mask={"causal": True},
        sizes=(2, 1, 7),
    ),
    scenario(
        "causal_more_queries",
        "with more queries than keys, the first queries see nothing and yield zeros",
        "causal bottom_right",
        mask={"causal": True},
        sees=lambda b, h, i, j: j <= i - 4,
        sizes=(2, 7, 3),
    ),
    scenario(
        "prefix",
        "keys of the prefix are seen by every query, each row with its own prefix",
        "causal prefix",
        mask={"causal": True, "prefix_lengths": PREFIXES},
        sees=lambda b, h, i, j: (j <= i) | (j < PREFIXES[b]),
    ),
    scenario(
        "prefix_whole",
        "a prefix as long as the sequence hides nothing",
        "causal prefix",
        mask={"causal": True, "prefix_lengths": [6, 6]},
    ),
    scenario(
        "prefixes_packed",
        "several prefix spans in a row, one at the start of each segment",
        "causal prefix packed",
        mask={"causal": True, "prefix_lengths": [2, 3], "query_segments": PACKED},
        sees=lambda b, h, i, j: (
            (PACKED[b, i] == PACKED[b, j]) & ((j <= i) | (WITHIN[b, j] < torch.tensor([2, 3])[b]))
        ),
    ),
)

WINDOWS = (
    scenario(
        "window_left",
        "(2, 0): the query's own key and the two before it",
        "causal",
        mask={"causal": True},
        window=(2, 0),
        sees=lambda b, h, i, j: (j <= i) & (j >= i - 2),
        principal=True,
    ),
    scenario("window_none", "(0, 0): only the query's own key", "", window=(0, 0), sees=lambda b, h, i, j: j == i),
    scenario(
        "window_both_sides",
        "(1, 2): one key before and two after",
        "",
        window=(1, 2),
        sees=lambda b, h, i, j: (j >= i - 1) & (j <= i + 2),
    ),
    scenario(
        "window_right", "(None, 1): unbounded on the left", "", window=(None, 1), sees=lambda b, h, i, j: j <= i + 1
    ),
    scenario(
        "window_open_right",
        "(1, None): unbounded on the right",
        "",
        window=(1, None),
        sees=lambda b, h, i, j: j >= i - 1,
    ),
    scenario("window_exact", "(5, 5): just as wide as the sequence hides nothing", "", window=(5, 5)),
    scenario(
        "window_fewer_queries",
        "a window counts from the position of the query, aligned bottom-right",
        "causal bottom_right",
        mask={"causal": True},
        window=(2, 0),
        sizes=(2, 3, 7),
        sees=lambda b, h, i, j: (j <= i + 4) & (j >= i + 2),
    ),
    scenario(
        "window_of_mask",
        "a window of the mask counts like one of the request",
        "causal window",
        mask={"causal": True, "window": (1, 0)},
        sees=lambda b, h, i, j: (j <= i) & (j >= i - 1),
    ),
    scenario(
        "windows_combine",
        "windows of mask and request combine",
        "window",
        mask={"window": (1, 4)},
        window=(3, 2),
        sees=lambda b, h, i, j: (j >= i - 1) & (j <= i + 2),
    ),
    scenario(
        "window_padding",
        "a window beside padding, where a query may see nothing and yields zeros",
        "causal padding",
        mask={"causal": True, "key_padding": INTERIOR},
        window=(1, 0),
        sees=lambda b, h, i, j: (j <= i) & (j >= i - 1) & INTERIOR[b, j],
    ),
)


DISTANCE_SCENARIOS = (*PLAIN, *CAUSAL, *WINDOWS)
