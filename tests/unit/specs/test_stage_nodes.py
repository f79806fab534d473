"""Which places each pipeline stage has."""

from __future__ import annotations

import pytest
import transom
from transom.errors import ParallelError
from transom.specs.shapes import shapes_of
from transom.specs.stage_nodes import rank_shapes, stages_of
from transom.specs.world import World


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


def test_layers_of_an_encoder_decoder_are_not_cut():
    with pytest.raises(ParallelError) as caught:
        stages_of(transom.plan("tiny-t5"), World(pp=2))
    assert caught.value.what == "the layers of an encoder-decoder are not cut into stages."
    assert (caught.value.asked_by, caught.value.hint) == ("--world", "pp=1")


def test_shapes_are_told_before_and_after_the_data_parallel_ranks_split_them():
    made = transom.plan("tiny-llama")
    whole = dict(shapes_of(made.root, 2))
    (stage,) = rank_shapes(made, World(tp=2, dp=2))
    assert {name: tuple(each["computes_with"]) for name, each in stage.items()} == whole
    assert stage["layers.0.mlp.linear_fc1.weight"] == {"computes_with": [2, 256, 192], "holds": [1, 256, 192]}
    (kept,) = rank_shapes(made, World(tp=2, dp=2, zero=2))
    assert all(each["computes_with"] == each["holds"] for each in kept.values())
