"""Which places each pipeline stage has."""

from __future__ import annotations

import math

import pytest
import transom
from transom.composition import build_stages
from transom.errors import ParallelError
from transom.specs.shapes import shapes_of
from transom.specs.shares import split
from transom.specs.stage_nodes import rank_shapes, stages_of
from transom.specs.world import World, how_cut


def test_stages_have_every_place_between_them():
    made = transom.plan("tiny-gpt2")
    stages = stages_of(made, World(pp=2))
    found = [node.path for stage in stages for node in stage.places()]
    assert sorted(found) == sorted(node.path for node in made.root.children())
    assert [node.path for node in stages[0].ends] == ["embedding.word_embeddings", "embedding.position_embeddings"]
    assert [stage.root is made.root for stage in stages] == [False, True]


@pytest.mark.parametrize("stages", [1, 2])
def test_last_of_several_stages_has_a_copy_of_a_shared_table(stages):
    *_, last = stages_of(transom.plan("tiny-llama"), World(pp=stages))
    assert [node.path for node in last.copies] == ["embedding.word_embeddings"] * (stages > 1)
    assert ("embedding.word_embeddings.weight" in last.rest(1)) is True


@pytest.mark.parametrize(("pp", "changes"), [(2, {}), (4, {}), (3, {"share_embeddings_and_output_weights": True})])
@pytest.mark.parametrize("positions", ["relative", "learned_absolute", "rope"])
def test_stages_of_an_encoder_decoder_have_the_parameters_that_are_built(pp, changes, positions):
    spec = transom.load_spec("tiny-t5").to_dict() | changes
    spec["config"] |= {"position_embedding_type": positions}
    world = World(pp=pp)
    cut = how_cut(transom.load_spec(spec).config, world, encoder_layers=2)
    planned, made = transom.plan(spec), transom.plan(spec | {"config": spec["config"] | cut})
    for nodes, shares in zip(stages_of(planned, world), split(planned, world), strict=True):
        (stage,) = build_stages(made, place=nodes.number, device="meta")
        assert shares.cost.parameters == sum(parameter.numel() for parameter in stage.parameters())
        told = nodes.rest(1) | {name: shape for layer in nodes.layers for name, shape in shapes_of(layer)}
        own = told.pop("own parameters", (0,))[0]
        built = {name: tuple(p.shape) for name, p in stage.named_parameters()}
        assert told.items() <= built.items()
        assert sum(math.prod(built[name]) for name in built.keys() - told.keys()) == own


def test_stages_of_an_encoder_decoder_embed_and_hand_on_what_they_have():
    stages = stages_of(transom.plan("tiny-t5"), World(pp=4))
    assert [stage.embeds for stage in stages] == [("encoder.",), (), ("decoder.",), ()]
    assert [stage.receives for stage in stages[1:]] == [("encoder.",)] * 2 + [("decoder.", "encoder.")]
    assert [stage.sends for stage in stages[:3]] == [("encoder.",)] * 2 + [("decoder.", "encoder.")]


def test_stages_of_an_encoder_decoder_are_even_and_not_virtual():
    with pytest.raises(ParallelError) as caught:
        stages_of(transom.plan("tiny-t5"), World(pp=2, vpp=2))
    assert caught.value.what == "encoder and decoder are each cut evenly, into stages without virtual ones."
    assert (caught.value.asked_by, caught.value.hint) == ("--world", "pp=2, without vpp and layout")


def test_shapes_are_told_before_and_after_the_data_parallel_ranks_split_them():
    made = transom.plan("tiny-llama")
    whole = dict(shapes_of(made.root, 2))
    (stage,) = rank_shapes(made, World(tp=2, dp=2))
    assert {name: tuple(each["computes_with"]) for name, each in stage.items()} == whole
    assert stage["layers.0.mlp.linear_fc1.weight"] == {"computes_with": [2, 256, 192], "holds": [1, 256, 192]}
    (kept,) = rank_shapes(made, World(tp=2, dp=2, zero=2))
    assert all(each["computes_with"] == each["holds"] for each in kept.values())
