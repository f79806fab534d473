"""What ranks hold and say, as tables."""

from __future__ import annotations

import transom
from transom.specs.activations import activations
from transom.specs.communication import communication
from transom.specs.render_world import Ranks, render_world
from transom.specs.shares import split
from transom.specs.step import Step
from transom.specs.world import World


def test_world_is_drawn_with_a_row_for_stages_that_are_alike():
    made = transom.plan("tiny-llama")
    lines = render_world(World(pp=4, dp=2), Ranks(split(made, World(pp=4, dp=2))), {"a": "x", "b": True}).splitlines()
    assert lines[0] == "8 ranks: tensor-parallel 1, pipeline 4, data-parallel 2; each has, without activations:"
    assert [line.split()[0] for line in lines[2:-2]] == ["0", "1", "3"]
    assert lines[3].split()[:5] == ["1", "to", "2", "1", "to"]
    assert lines[-2].startswith("Largest: ")
    assert lines[-2].endswith(" on the ranks of stage 3")
    assert lines[-1] == 'Cut as by: a: "x", b: true'


def test_world_is_drawn_with_the_layers_of_every_virtual_stage():
    made = transom.plan("tiny-llama")
    world = World(pp=2, vpp=2, layout="Ett|t|t|L")
    lines = render_world(world, Ranks(split(made, world)), {}).splitlines()
    assert " 0 to 1, 3 " in lines[2]
    assert lines[3].split()[:2] == ["1", "2"]


def test_exchanges_are_drawn_of_the_stage_that_sends_most():
    made, world = transom.plan("tiny-llama"), World(tp=2, pp=2, dp=2, batch=8, microbatches=4)
    step = Step.of(made, world)
    said = communication(made, world, step)
    ranks = Ranks(split(made, world), activations(made, world, step), said)
    text = render_world(world, ranks, {}, step)
    table = text.split("\n\n")[1].splitlines()
    sums = [sum(each.sent for each in stage) for stage in said]
    assert sums[1] > sums[0]
    assert table[0].startswith("In a step, 4 passes of 1 x 256 tokens, a rank sends at least ")
    assert table[0].endswith(", most of all on stage 1:")
    assert table[1].split() == ["what", "operation", "calls", "bytes", "sent", "at", "least"]
    assert [line.split()[0] for line in table[2:]] == [each.axis for each in said[1]]
    assert "activations" in text.splitlines()[1]


def test_nothing_is_drawn_of_what_one_rank_says_to_itself():
    made = transom.plan("tiny-llama")
    step = Step.of(made, World())
    ranks = Ranks(split(made, World()), activations(made, World(), step), communication(made, World(), step))
    assert "In a step" not in render_world(World(), ranks, {}, step)


def test_ranks_are_given_as_plain_data():
    made, world = transom.plan("tiny-llama"), World(tp=2)
    step = Step.of(made, world)
    (data,) = Ranks(split(made, world), activations(made, world, step), communication(made, world, step)).to_dict()
    assert data["activations"] == activations(made, world, step)[0]
    assert data["communication"][0] == {
        "axis": "tp",
        "what": "column linears",
        "operation": "all_reduce",
        "calls": 8,
        "bytes": 8 * 8 * 256 * 192 * 4,
        "ranks": 2,
        "sent": 8 * 8 * 256 * 192 * 4,
    }
    assert set(Ranks(split(made, world)).to_dict()[0]).isdisjoint({"activations", "communication"})
