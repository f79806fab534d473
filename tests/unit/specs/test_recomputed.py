"""Which places run again in the backward pass; that they do is counted in tests/distributed/test_volumes.py."""

from __future__ import annotations

import pytest
import transom
from transom.specs.recomputed import recomputed_places
from transom.specs.stage_nodes import stages_of
from transom.specs.world import World

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}


def places(config, world=None, recipe="tiny-llama"):
    spec = transom.load_spec(recipe).to_dict()
    made = transom.plan(spec | {"config": spec["config"] | config})
    return [recomputed_places(nodes) for nodes in stages_of(made, world or World())]


def rows(found):
    return sorted(path for path in found if path.endswith("linear_fc2"))


def test_nothing_runs_again_unless_it_is_asked_for():
    assert places({}) == [frozenset()]


def test_last_row_linear_of_a_chunk_does_not_run_again():
    (found,) = places(FULL)
    assert rows(found) == ["layers.0.mlp.linear_fc2", "layers.2.mlp.linear_fc2"]
    assert sum(path.endswith("linear_proj") for path in found) == 4


@pytest.mark.parametrize("config", [{"hidden_dropout": 0.1}, {"post_mlp_layernorm": True}], ids=str)
def test_it_does_where_something_reads_what_it_makes(config):
    (found,) = places(FULL | config)
    assert len(rows(found)) == 4


def test_first_layers_alone_run_again_under_block():
    (found,) = places(FULL | {"recompute_method": "block", "recompute_num_layers": 1})
    assert {path.split(".")[1] for path in found} == {"0"}


def test_chunks_begin_with_every_stage_and_every_stack():
    first, last = places(FULL | {"recompute_num_layers": 4}, World(pp=2))
    assert (rows(first), rows(last)) == (["layers.0.mlp.linear_fc2"], ["layers.2.mlp.linear_fc2"])
    (both,) = places(FULL, recipe="tiny-t5")
    assert rows(both) == ["decoder.layers.0.mlp.linear_fc2", "encoder.layers.0.mlp.linear_fc2"]


def test_modules_that_are_named_run_again():
    selective = {"recompute_granularity": "selective", "recompute_modules": ["mlp", "core_attn"]}
    (found,) = places(selective)
    inside = {".".join(path.split(".")[2:]) for path in found}
    assert inside == {"mlp", "mlp.linear_fc1", "self_attention.core_attention"}
