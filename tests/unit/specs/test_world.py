"""How many ranks share what: what users write, and how layers are cut."""

from __future__ import annotations

import pytest
import transom
from transom.errors import ParallelError
from transom.models.decoder_assembly import assemble_decoder
from transom.specs.plan import plan
from transom.specs.shares import split
from transom.specs.world import World, how_cut, parse_world, pipelined

CONFIG = {
    "num_layers": 6,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "position_embedding_type": "none",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def make(use=None, **config):
    shared = config.pop("shared", False)
    spec = {
        "vocab_size": 40,
        "max_sequence_length": 16,
        "share_embeddings_and_output_weights": shared,
        "config": CONFIG | config,
        "use": {"core_attention": "dot_product"} | (use or {}),
    }
    # One that declares nothing, so that a config of several pipeline stages is planned too.
    with transom.override("model", "undeclared", assemble_decoder):
        return plan(spec | {"model": "undeclared" if "pipeline_model_parallel_size" in config else "decoder"})


def test_config_s_own_stages_are_taken_where_the_world_is_of_its_size():
    layout = "Et|t|tttt|L"
    sizes = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    made = make(**sizes, pipeline_model_parallel_layout=layout)
    world = parse_world("dp=4", made.config)
    assert world == World(pp=2, dp=4, vpp=2)
    assert pipelined(made.config, world) is made.config
    assert [stage.layers for stage in split(made, world)] == [((0, 1), (2, 6)), ((1, 2), (6, 6))]
    assert how_cut(made.config, world) == sizes | {"pipeline_model_parallel_layout": layout}
    assert how_cut(made.config, World()) == {}


def test_world_s_layout_replaces_what_the_config_says():
    made = make(pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=4)
    world = parse_world("layout=Et|tttttL", made.config)
    assert [stage.layers for stage in split(made, world)] == [((0, 1),), ((1, 6),)]


@pytest.mark.parametrize(
    ("text", "world"),
    [
        ("tp=8,pp=16,dp=32", World(8, 16, 32)),
        (" pp = 2 ", World(pp=2)),
        ("tp=1,zero=1,dp=4", World(dp=4, zero=1)),
        ("dp=4,cp=2,sp=1,batch=64,microbatches=8", World(dp=4, cp=2, sp=1, batch=64, microbatches=8)),
        ("pp=2,layout=Et|t,L", World(pp=2, layout="Et|t,L")),
        ("pp=2,vpp=2, layout= Et*2|t|t|L ", World(pp=2, vpp=2, layout="Et*2|t|t|L")),
    ],
)
def test_parse_world_reads_sizes(text, world):
    assert parse_world(text) == world


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is no size of a world."),
        ("ep=2", "'ep=2' is no size of a world."),
        ("tp=2,tp=2", "tp is given twice."),
        ("tp=0", "tp is '0', not a number of ranks."),
        ("tp=-1", "tp is '-1', not a number of ranks."),
        ("tp=two", "tp is 'two', not a number of ranks."),
        ("tp", "tp is '', not a number of ranks."),
        ("zero=4", "zero is 4."),
        ("sp=2", "sp is 2."),
        ("batch=0", "batch is '0', not a number of ranks."),
        ("tp=99999999", "tp is '99999999', not a number of ranks."),
    ],
)
def test_parse_world_refuses_what_is_no_world(text, what):
    with pytest.raises(ParallelError) as caught:
        parse_world(text)
    assert (caught.value.what, caught.value.asked_by) == (what, "--world")


def test_context_parallel_ranks_split_what_data_parallel_ranks_do():
    assert (World(tp=2, pp=3, dp=4, cp=5).ranks, World(dp=4, cp=5).data) == (120, 20)
