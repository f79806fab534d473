"""What ranks say, by the formulas of the papers, written out for one small model.

That they do say it is held against real processes in tests/distributed/test_volumes.py.
"""

from __future__ import annotations

import time

import pytest
import transom
from transom.specs.communication import Exchange, communication
from transom.specs.step import Step
from transom.specs.totals import totals
from transom.specs.world import World

B, S, H, L, V = 8, 256, 192, 4, 256  # of tiny-llama


def said(world, plan=None):
    made = plan or transom.plan("tiny-llama")
    stages = communication(made, world, Step.of(made, world))
    return [{(each.axis, each.what, each.operation): (each.calls, each.bytes) for each in stage} for stage in stages]


def test_tensor_parallel_layer_reduces_twice_forward_and_twice_backward():
    (found,) = said(World(tp=2))
    assert found["tp", "column linears", "all_reduce"] == (2 * L, 2 * L * B * S * H * 4)
    assert found["tp", "row linears", "all_reduce"] == (2 * L, 2 * L * B * S * H * 4)
    assert found["tp", "embedding", "all_reduce"] == (1, B * S * H * 4)
    assert found["tp", "loss", "all_reduce"] == (4, B * S * H * 4 + 3 * B * S * 4)


def test_sequence_parallelism_gathers_and_scatters_instead():
    (found,) = said(World(tp=2, sp=1))
    each = (2 * L, 2 * L * B * S * H * 4)
    for what in ("column linears", "row linears"):
        assert (found["tp", what, "all_gather"], found["tp", what, "reduce_scatter"]) == (each, each)
    assert found["tp", "loss", "all_reduce"] == (3, 3 * B * S * 4)
    assert found["tp", "gradients of norms", "all_reduce"] == (1, (2 * L + 1) * H * 4)


def test_sequence_parallelism_sends_as_much():
    def tensor_parallel(sp):
        made = transom.plan("tiny-llama")
        (stage,) = communication(made, World(tp=4, sp=sp), Step.of(made, World(tp=4, sp=sp)))
        return sum(each.sent for each in stage if each.what in ("column linears", "row linears", "embedding"))

    # The table's backward pass has nothing to add up, but a sequence to put together.
    assert tensor_parallel(1) - tensor_parallel(0) == 0


def test_layers_are_gathered_twice_and_the_rest_once():
    (found,) = said(World(dp=2))
    numbers = totals(transom.plan("tiny-llama")).cost.parameters
    rest = V * H + H
    assert found["dp", "parameters", "all_gather"] == (2 * L + 1, (2 * (numbers - rest) + rest) * 4)
    assert found["dp", "gradients", "reduce_scatter"] == (L + 1, numbers * 4)


def test_stages_send_hidden_states_on_and_their_gradients_back():
    first, middle, last = said(World(pp=3, microbatches=4, layout="Et|tt|tL"))
    each = (4, B * S * H * 4)
    assert [stage.get(("pp", "hidden states", "send")) for stage in (first, middle, last)] == [each, each, None]
    assert [stage.get(("pp", "their gradients", "send")) for stage in (first, middle, last)] == [None, each, each]


def test_virtual_stages_send_as_often_as_there_are_of_them():
    first, last = said(World(pp=2, vpp=2, microbatches=4))
    calls = [stage["pp", what, "send"][0] for stage in (first, last) for what in ("hidden states", "their gradients")]
    assert calls == [8, 4, 4, 8]


def test_keys_and_values_are_gathered_over_context_parallel_ranks():
    (found,) = said(World(tp=2, cp=2))
    size = L * B * S * 1 * 2 * 32 * 4  # one of the two key/value heads is on each tensor-parallel rank
    assert found["cp", "keys and values", "all_gather"] == (L, size)
    assert found["cp", "keys and values", "reduce_scatter"] == (L, size)
    assert found["tp", "row linears", "all_reduce"] == (2 * L, 2 * L * B * S // 2 * H * 4)


@pytest.mark.parametrize(
    ("operation", "sent"), [("all_reduce", 1500), ("all_gather", 750), ("reduce_scatter", 750), ("send", 1000)]
)
def test_ring_sends_what_it_must(operation, sent):
    assert Exchange("tp", "x", operation, 1, 1000, 4).sent == sent


def test_one_rank_says_nothing():
    assert said(World()) == [{}]


def test_volume_of_16384_ranks_is_told_at_once():
    began = time.process_time()
    found = said(World(tp=8, pp=16, dp=128, batch=2048, microbatches=16), transom.plan("llama-405b-shape"))
    assert time.process_time() - began < 10
    layer_tokens = 16 * 8192 * 16384 * 2
    assert found[1]["tp", "row linears", "all_reduce"] == (16 * 2 * 8, 2 * 8 * layer_tokens)
    assert found[1]["pp", "hidden states", "send"] == (16, layer_tokens)
