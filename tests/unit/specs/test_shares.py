"""What one rank of a model holds that is split over many, and what does not divide."""

from __future__ import annotations

import pytest
import transom
from transom.errors import ParallelError
from transom.models.decoder_assembly import assemble_decoder
from transom.specs.plan import plan
from transom.specs.shares import split
from transom.specs.totals import Cost, Memory, costs, totals
from transom.specs.world import World, how_cut, parse_world
from transom.transformer.pipeline_layout import num_layers_of_stage

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


@pytest.mark.parametrize("shared", [False, True])
def test_one_rank_has_everything(shared):
    made = make(shared=shared)
    (stage,) = split(made, World())
    assert (stage.cost, stage.memory) == (totals(made).cost, totals(made).memory)
    assert stage.layers == ((0, 6),)


def test_key_value_head_is_on_several_ranks_where_there_are_more_of_them():
    made = make(num_query_groups=2)
    (whole,), (two,), (four,) = (split(made, World(tp=tp)) for tp in (1, 2, 4))
    assert whole.cost.kv_bytes == 2 * two.cost.kv_bytes == 2 * four.cost.kv_bytes
    assert four.cost.parameters < two.cost.parameters


def test_tensor_parallel_rank_has_its_part_of_matrices_and_heads_and_whole_norms():
    made = make()
    (stage,) = split(made, World(tp=4))
    h, f, layers = 32, 48, 6
    norms = (2 * layers + 1) * 2 * h
    column = h * 3 * h + 3 * h + h * f + f  # qkv and fc1, with their biases
    row = h * h + f * h  # proj and fc2
    parameters = layers * ((column + row) // 4 + 2 * h) + norms + 2 * 40 * h // 4
    assert stage.cost == Cost(parameters, totals(made).cost.flops // 4, totals(made).cost.kv_bytes // 4)


def test_stages_of_a_pipeline_have_the_model_between_them():
    made = make()
    stages = split(made, World(pp=3))
    assert [stage.layers for stage in stages] == [((0, 2),), ((2, 4),), ((4, 6),)]
    assert sum((stage.cost for stage in stages), Cost()) == totals(made).cost
    embedding, output, norm = 40 * 32, 40 * 32, 2 * 32
    middle = stages[1].cost.parameters
    assert [stage.cost.parameters for stage in stages] == [middle + embedding, middle, middle + output + norm]


def test_last_stage_has_a_copy_of_a_shared_table():
    made = make(shared=True)
    stages = split(made, World(tp=2, pp=2))
    table = 40 * 32 // 2
    whole = split(made, World(tp=2))[0].cost
    assert sum(stage.cost.parameters for stage in stages) == whole.parameters + table
    assert sum(stage.cost.flops for stage in stages) == whole.flops


@pytest.mark.parametrize(
    ("zero", "parts"), [(0, (1, 1, 1)), (1, (1, 1, 3)), (2, (1, 3, 3)), (3, (3, 3, 3))], ids=lambda x: str(x)
)
def test_data_parallel_ranks_split_what_zero_says(zero, parts):
    made = make()
    numbers = totals(made).cost.parameters
    (stage,) = split(made, World(dp=3, zero=zero))

    def bytes_of(count, part):
        return 4 * -(-count // part)

    expected = [bytes_of(n, part) for n, part in zip((numbers, numbers, 2 * numbers), parts, strict=True)]
    assert stage.memory == Memory(*expected)


@pytest.mark.parametrize(
    ("layers", "stages", "config", "counts"),
    [
        (6, 3, {}, [2, 2, 2]),
        (6, 4, {}, [1, 2, 2, 1]),
        (7, 3, {}, [2, 3, 2]),
        (6, 2, {"account_for_embedding_in_pipeline_split": True, "num_layers": 7}, [3, 4]),
        (6, 3, {"num_layers_in_first_pipeline_stage": 2, "num_layers_in_last_pipeline_stage": 1}, [2, 3, 1]),
        (6, 2, {"num_layers_in_first_pipeline_stage": 4}, [4, 2]),
        (6, 1, {}, [6]),
    ],
)
def test_layers_are_spread_over_stages(layers, stages, config, counts):
    size = {} if not config else {"pipeline_model_parallel_size": stages}
    made = make(**{"num_layers": layers} | size | config)
    assert [last - first for stage in split(made, World(pp=stages)) for first, last in stage.layers] == counts
    cut = made.config.replace(**how_cut(made.config, World(pp=stages)))
    assert [num_layers_of_stage(cut, stage) for stage in range(stages)] == counts


def test_layers_that_divide_in_no_way_are_refused():
    with pytest.raises(ParallelError, match=r"5 layers .* do not divide over 4 pipeline chunks") as caught:
        split(make(num_layers=5), World(pp=4))
    assert caught.value.hint == "another pp or vpp, or layout=, for instance pp=3,layout=Et*3|t*4|t*3,L"


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("pp=2,vpp=3", [[0, 2, 4], [1, 3, 5]]),
        ("pp=3,layout=Et|ttt|tt,L", [[0], [1, 2, 3], [4, 5]]),
        ("pp=2,vpp=2,layout=E|tt|ttt|t,L", [[2, 3, 4], [0, 1, 5]]),
        ("pp=3,layout=Et*6||L", [[0, 1, 2, 3, 4, 5], [], []]),
    ],
)
def test_stages_are_those_that_would_be_built(text, layers):
    made = make()
    world = parse_world(text, made.config)
    stages = split(made, world)
    assert [[i for first, last in stage.layers for i in range(first, last)] for stage in stages] == layers
    each = made.root.parts["layers"]
    cost = costs(made)
    ends = {0: cost["embedding.word_embeddings"], len(layers) - 1: cost["final_layernorm"] + cost["output_layer"]}
    assert len(each) == 6
    for stage, own in zip(stages, layers, strict=True):
        expected = sum((cost[f"layers.{i}"] for i in own), ends.get(stage.number, Cost()))
        assert (stage.cost.parameters, stage.cost.kv_bytes) == (expected.parameters, expected.kv_bytes)


def test_llama_405b_is_split_as_it_was_trained():
    stages = split(plan("llama-405b-shape"), World(tp=8, pp=16, dp=128))
    assert [last - first for stage in stages for first, last in stage.layers] == [7, *[8] * 14, 7]


def test_places_that_are_not_told_are_whole_on_each_rank(fakes, make_spec):
    made = plan(make_spec(config={"num_attention_heads": 2}), registry=fakes)
    inside = totals(made).cost.parameters / 3
    measured = {f"layers.{i}.mlp": Cost(1000, 2000, 30) for i in range(3)}
    (one,), (two,) = (split(made, World(tp=tp), measured) for tp in (1, 2))
    linears, row_bias, norms, table = 8 * 12 + 12 + 12 * 8 + 8, 8, 16, 16 * 8
    assert inside == linears + norms + table / 3
    own = 1000 - linears
    assert one.cost.parameters == table + 3 * (norms + 1000)
    assert two.cost.parameters == table / 2 + 3 * (norms + own + (linears - row_bias) / 2 + row_bias)
    assert two.cost.flops == 3 * (2000 - 2 * 2 * 8 * 12 / 2)


@pytest.mark.parametrize(
    ("config", "world", "what", "hint"),
    [
        (
            {},
            World(pp=7),
            "num_layers is 6; 6 layers (embedding and loss counted as asked) do not divide over 7 pipeline chunks.",
            "another pp or vpp, or layout=, for instance pp=3,layout=Et*3|t*4|t*3,L",
        ),
        (
            {"num_attention_heads": 20, "num_query_groups": 4, "kv_channels": 10},
            World(tp=10),
            "layers.0.self_attention.core_attention: num_query_groups 4 does not divide over 10 tensor-parallel ranks.",
            "a tp that divides 4",
        ),
        (
            {},
            World(tp=16),
            "layers.0.self_attention.core_attention: num_attention_heads 4 does not divide over 16 "
            "tensor-parallel ranks.",
            "a tp that divides 4",
        ),
        (
            {"ffn_hidden_size": 50},
            World(tp=4),
            "layers.0.mlp.linear_fc1: output_size 50 does not divide over 4 tensor-parallel ranks.",
            "a tp that divides 50",
        ),
        (
            {"num_layers_in_first_pipeline_stage": 2, "pipeline_model_parallel_size": 2},
            World(pp=4),
            "num_layers is 6; 4 layers (embedding and loss counted as asked) do not divide over 3 pipeline chunks.",
            "another pp or vpp, or layout=, for instance pp=3,layout=Et*3|t*4|t*3,L",
        ),
    ],
)
def test_what_does_not_divide_is_refused(config, world, what, hint):
    with pytest.raises(ParallelError) as caught:
        split(make(**config), world)
    assert (caught.value.what, caught.value.hint, caught.value.asked_by) == (what, hint, "--world")


def test_vocabulary_that_does_not_divide_is_refused():
    with pytest.raises(ParallelError, match=r"embedding\.word_embeddings: num_embeddings 16 does not divide over 3"):
        split(
            plan(
                {
                    "vocab_size": 16,
                    "max_sequence_length": 8,
                    "config": CONFIG | {"hidden_size": 36, "num_attention_heads": 6, "ffn_hidden_size": 48},
                }
            ),
            World(tp=3),
        )


@pytest.mark.parametrize("ranks", [2, 4])
def test_cost_of_a_plan_for_several_ranks_is_that_of_the_whole_model(ranks):
    use = {"linear": "parallel_linear", "embedding": "split", "loss": "split"}

    class Table:
        def __new__(cls, num_embeddings, embedding_dim, /, *, config, init_method, tp_group): ...

    class Loss:
        def __new__(cls, config, *, request): ...

    with transom.override("embedding", "split", Table), transom.override("loss", "split", Loss):
        made = make(use, tensor_model_parallel_size=ranks, softmax_type="learnable")
    assert totals(made).cost == totals(make(softmax_type="learnable")).cost
