"""How many operations a step asks of torch: what layers share is computed once, and nothing is copied to be viewed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transom
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def decoder(num_layers: int, **config: Any) -> Any:
    spec = {
        "vocab_size": 32,
        "max_sequence_length": 64,
        "config": {
            "num_layers": num_layers,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "gated_linear_unit": True,
            "activation_func": "silu",
            "add_bias_linear": False,
            **config,
        },
    }
    return transom.build(spec, use={"core_attention": "torch_dot_product"}, mode="infer", seed=0).eval()


def decoding(model: Any) -> Counter[str]:
    model.setup_caches(1)
    with torch.no_grad():
        model(torch.arange(5)[None], input_pos=torch.arange(5))
        with Operations() as seen:
            model(torch.tensor([[5]]), input_pos=torch.tensor([5]))
    return seen.counts


@pytest.mark.parametrize("config", [{}, {"rotary_interleaved": True}, {"rotary_percent": 0.5}], ids=str)
def test_angles_are_computed_once_a_step(config: dict[str, Any]) -> None:
    counts = decoding(decoder(3, **config))
    assert (counts["cos"], counts["sin"]) == (1, 1)


def test_a_layer_of_a_decoding_step_asks_for_no_more_operations_than_a_hand_written_one() -> None:
    few, more = decoding(decoder(2)), decoding(decoder(3))
    # Two norms of 6, four linears of 4 and their product's view; projections viewed, split and flattened; two turns of
    # 4; two slots of 2 views and a copy; attention; a gated unit; two sums. Written by hand it is 57.
    assert (more - few).total() <= 58, (more - few).most_common()


def test_heads_of_one_group_are_not_copied_to_be_turned() -> None:
    counts = decoding(decoder(3, num_query_groups=1))
    assert counts["clone"] == 0, counts.most_common()


def test_a_decoding_step_reads_its_positions_at_once() -> None:
    counts = decoding(decoder(1))
    assert counts["_local_scalar_dense"] == 0, counts.most_common()
    assert counts["arange"] == 0
