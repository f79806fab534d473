"""What ranks keep for the backward pass, against what autograd keeps of models that are run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from transom.specs.activations import activations
from transom.specs.step import Step
from transom.specs.world import World


def make(config: dict[str, Any] | None = None, **train: Any) -> transom.Plan:
    spec = transom.load_spec("tiny-llama").to_dict()
    train = spec["train"] | {"batch_size": 2, "sequence_length": 64} | train
    return transom.plan(spec | {"config": spec["config"] | (config or {}), "train": train})


def told(made: transom.Plan, world: World) -> tuple[int, ...]:
    return activations(made, world, Step.of(made, world))


def kept(made: transom.Plan) -> int:
    """Add up the memory that autograd keeps of a forward pass, parameters and tables of positions aside."""
    model = transom.build(made, seed=0).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(2, 64, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, labels=tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("config", [{}, {"hidden_size": 96, "kv_channels": 16}, {"num_layers": 2}], ids=str)
def test_estimate_is_near_to_what_autograd_keeps(config):
    made = make(config)
    assert told(made, World())[0] == pytest.approx(kept(made), rel=0.01)


def test_tensor_parallel_rank_keeps_its_part_of_what_linears_make():
    one, two = (told(make(), World(tp=tp))[0] for tp in (1, 2))
    kept = 192 + 2 * 64 + 6 + 192 + 2 * 512 + 512  # queries, keys and values; sums; what rows read; gate and up
    logits = 256 // 2  # which one process makes again
    assert one - two == 2 * 64 * 4 * (4 * kept // 2 - logits)


def test_sequence_parallel_rank_keeps_its_part_of_what_norms_read():
    whole, part = (told(make(), World(tp=2, sp=sp))[0] for sp in (0, 1))
    assert whole - part == 9 * 2 * 64 * (192 + 1) * 4 // 2


def test_earlier_stages_hold_more_parts_of_a_batch():
    made = make(batch_size=8)
    _, second, third, _ = told(made, World(pp=4, batch=8, microbatches=8))
    assert second * 2 == third * 3
    _, second, third, _ = told(made, World(pp=4, microbatches=2))  # there are no more than two
    assert second == third


def test_virtual_stages_hold_parts_of_their_own():
    plain, virtual = (told(make(), World(pp=2, vpp=vpp, batch=16, microbatches=8)) for vpp in (1, 2))
    assert (plain[1] * 3, plain[0] * 5) == (virtual[1] * 2, virtual[0] * 4)


@pytest.mark.parametrize(
    ("recompute", "chunks"),
    [
        ({"recompute_method": "uniform", "recompute_num_layers": 2}, 2),
        ({"recompute_method": "uniform", "recompute_num_layers": 1}, 4),
    ],
)
def test_recomputed_layers_keep_their_input_and_one_chunk_is_there_at_a_time(recompute, chunks):
    plain = told(make(), World())[0]
    again = told(make({"recompute_granularity": "full"} | recompute), World())[0]
    hidden = 2 * 64 * 192 * 4
    ends = told(make({"num_layers": 1}), World())[0]
    layers = (plain - ends) // 3 * 4
    assert again == plain - layers + chunks * hidden + layers // chunks


def test_plan_that_does_not_train_keeps_nothing():
    made = transom.plan("tiny-llama", mode="infer")
    assert told(made, World(pp=2)) == (0, 0)
