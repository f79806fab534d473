from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transom.errors import ConfigError, ParallelError
from transom.transformer.pipeline_layout import (
    PipelineLayout,
    first_layer_of_stage,
    layers_of_chunks,
    num_layers_of_stage,
    stage_of,
)
from transom.transformer.transformer_config import TransformerConfig

FIELD = "pipeline_model_parallel_layout"


def config(num_layers, stages, virtual=None, **fields):
    return TransformerConfig(
        num_layers=num_layers,
        hidden_size=4,
        num_attention_heads=1,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual,
        **fields,
    )


def first_and_last(first=None, last=None):
    return {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}


def counted(embedding=False, loss=False):
    return {"account_for_embedding_in_pipeline_split": embedding, "account_for_loss_in_pipeline_split": loss}


# The layers of every stage and virtual stage, written out by hand: [virtual stage][stage].
BY_HAND = [
    (config(5, 1), [[[1, 2, 3, 4, 5]]]),
    (config(6, 3), [[[1, 2], [3, 4], [5, 6]]]),
    (config(8, 2, 2), [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
    (config(7, 3, **first_and_last(first=1)), [[[1], [2, 3, 4], [5, 6, 7]]]),
    (config(7, 3, **first_and_last(last=3)), [[[1, 2], [3, 4], [5, 6, 7]]]),
    (config(7, 4, **first_and_last(1, 2)), [[[1], [2, 3], [4, 5], [6, 7]]]),
    (config(3, 2, **first_and_last(1, 2)), [[[1], [2, 3]]]),
    (config(10, 3, 2, **first_and_last(2, 4)), [[[1], [2, 3], [4, 5]], [[6], [7, 8], [9, 10]]]),
    (config(5, 3, **counted(embedding=True)), [[[1], [2, 3], [4, 5]]]),
    (config(5, 3, **counted(loss=True)), [[[1, 2], [3, 4], [5]]]),
    (config(4, 3, **counted(True, True)), [[[1], [2, 3], [4]]]),
    (config(2, 2, 2, **counted(True, True)), [[[], [1]], [[2], []]]),
    (config(6, 2, 2, pipeline_model_parallel_layout="Ettt|t|tt|mL"), [[[1, 2, 3], [4]], [[5, 6], []]]),
]


@pytest.mark.parametrize(("whole", "expected"), BY_HAND, ids=range(len(BY_HAND)))
def test_stages_have_the_layers_counted_by_hand(whole, expected):
    for virtual_stage, stages in enumerate(expected):
        for stage, layers in enumerate(stages):
            assert num_layers_of_stage(whole, stage, virtual_stage) == len(layers)
            found = stage_of(whole, stage, virtual_stage)
            assert list(found.layer_numbers) == layers
            assert found.pre_process is (stage == virtual_stage == 0)
            assert found.post_process is (stage == len(stages) - 1 and virtual_stage == len(expected) - 1)
            first = first_layer_of_stage(whole, stage, virtual_stage)
            assert list(range(first, first + len(layers))) == layers
    for stage in range(len(expected[0])):
        assert num_layers_of_stage(whole, stage) == sum(len(stages[stage]) for stages in expected)
        if len(expected) == 1:
            assert stage_of(whole, stage) == stage_of(whole, stage, 0)
            assert first_layer_of_stage(whole, stage) == first_layer_of_stage(whole, stage, 0)


@st.composite
def configs(draw):
    """Any way to split layers, from the layers of a chunk to the fields that should lead to them."""
    stages, virtual = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    per = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["ends", "counted", "layout"]))
    if kind == "layout":
        chunks = draw(st.lists(st.integers(0, 4), min_size=stages * virtual, max_size=stages * virtual).filter(any))
        text = "E" + "|".join("t" * n if n < 2 else f"t*{n}" for n in chunks) + "L"
        return config(sum(chunks), stages, virtual, pipeline_model_parallel_layout=text), chunks
    of_stages = [per] * stages
    if kind == "ends":
        first, last = draw(st.none() | st.integers(1, 4)), draw(st.none() | st.integers(1, 4))
        of_stages[0], of_stages[-1] = first or per, last or per
        given_ = first_and_last(first and first * virtual, last and last * virtual)
        return config(sum(of_stages) * virtual, stages, virtual, **given_), of_stages * virtual
    embedding, loss = draw(st.booleans()), draw(st.booleans())
    chunks = of_stages * virtual
    chunks[0], chunks[-1] = chunks[0] - embedding, chunks[-1] - loss
    assume(sum(chunks))  # a model has a layer at least
    return config(sum(chunks), stages, virtual, **counted(embedding, loss)), chunks


@settings(max_examples=150, deadline=None)
@given(configs())
def test_stages_partition_the_layers_in_order(drawn):
    whole, chunks = drawn
    assert list(layers_of_chunks(whole)) == chunks
    stages, virtual = whole.pipeline_model_parallel_size, whole.virtual_pipeline_model_parallel_size
    seen = []
    for virtual_stage in range(virtual):
        for stage in range(stages):
            first = first_layer_of_stage(whole, stage, virtual_stage)
            seen += range(first, first + num_layers_of_stage(whole, stage, virtual_stage))
    assert seen == list(range(1, whole.num_layers + 1))
    assert sum(num_layers_of_stage(whole, stage) for stage in range(stages)) == whole.num_layers


@pytest.mark.parametrize(
    ("call", "text", "data"),
    [
        (lambda c: num_layers_of_stage(c, 2), "there is no pipeline stage 2 of 2.", {"stage": 2}),
        (lambda c: first_layer_of_stage(c, -1, 0), "there is no pipeline stage -1 of 2.", {"stage": -1}),
        (
            lambda c: num_layers_of_stage(c, 0, 3),
            "there is no virtual pipeline stage 3 of 3.",
            {"stage": 0, "virtual_stage": 3},
        ),
        (
            lambda c: stage_of(c, 1),
            "stage 1 has 3 virtual stages, each with a first layer of its own.",
            {"stage": 1},
        ),
        (lambda c: stage_of(c, 2, 0), "there is no pipeline stage 2 of 2.", {"stage": 2}),
        (
            lambda c: first_layer_of_stage(c, 1),
            "stage 1 has 3 virtual stages, each with a first layer of its own.",
            {"stage": 1},
        ),
    ],
    ids=["beyond", "negative", "virtual", "which of a stage", "stage beyond", "which"],
)
def test_stage_that_is_not_there_is_refused(call, text, data):
    with pytest.raises(ParallelError, match=re.escape(text)) as caught:
        call(config(6, 2, 3))
    assert caught.value.data == data


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("EtL", ("EtL",)),
        ("Et|L", ("Et", "L")),
        ("E,t*2 | t,t,L", ("Ett", "ttL")),
        ("E|(t|)*2,L", ("E", "t", "t", "L")),
        ("E((tt|)*2t|)*2L", ("E" + "tt", "tt", "t", "tt", "tt", "t", "L")),
        ("Et*2*3L", ("EttttttL",)),
        ("E||tL", ("E", "", "tL")),
        ("Et|mm|mL", ("Et", "mm", "mL")),
        ("Et*012L", ("E" + 12 * "t" + "L",)),
    ],
)
def test_layout_is_read_as_written_out(text, chunks):
    assert PipelineLayout.parse(text).chunks == chunks


def test_layout_of_many_chunks_is_read():
    layout = PipelineLayout.parse("Et*3|(tt|)*29,m|L")
    assert layout.chunks == ("Ettt", *["tt"] * 29, "m", "L")
    assert layout.layers == (3, *[2] * 29, 0, 0)
    whole = config(61, 16, 2, pipeline_model_parallel_layout=layout.text)
    assert [num_layers_of_stage(whole, 0, v) for v in (0, 1)] == [3, 2]
    assert [first_layer_of_stage(whole, 0, v) for v in (0, 1)] == [1, 34]
    assert num_layers_of_stage(whole, 15) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_layout_means_the_same_with_and_without_repetitions(chunks):
    plain = "E" + "|".join("t" * n for n in chunks) + "L"
    short = "E," + " | ".join(f"(t)*{n}" if n else "" for n in chunks) + ",L"
    assert PipelineLayout.parse(short).chunks == PipelineLayout.parse(plain).chunks == tuple(plain.split("|"))


@pytest.mark.parametrize(
    ("text", "position", "wrong"),
    [
        ("Etx|L", 3, "'x' means nothing; E, t, m, L, |, parentheses and *n do"),
        ("Et3L", 3, "'3' means nothing"),
        ("E(t|(t)L", 2, "this parenthesis is not closed"),
        ("Et)L", 3, "no parenthesis is open here"),
        ("E()*2L", 3, "there is nothing between these parentheses"),
        ("*2tL", 1, "there is nothing before * to repeat"),
        ("E(*2t)L", 3, "there is nothing before * to repeat"),
        ("Et*|L", 3, "a number is needed after *"),
        ("Et*0L", 3, "a number of at least 1 is needed after *"),
        ("Et*999999999999L", 3, "more than 100000 parts would come of this repetition"),
        ("E(t*1000)*101L", 10, "more than 100000 parts would come of this repetition"),
        ("tL", None, "it has no embedding (E)"),
        ("", None, "it has no embedding (E)"),
        ("Et", None, "it has no loss (L)"),
        ("EtE|L", 3, "there can be one embedding (E)"),
        ("EtL*2", 3, "there can be one loss (L)"),
        ("t|EL", 3, "the embedding (E) must come first"),
        ("EL|t", 2, "the loss (L) must come last"),
        ("Et|mt|L", 5, "a layer (t) cannot follow a multi-token-prediction layer (m)"),
    ],
)
def test_layout_that_cannot_be_is_refused_with_its_place(text, position, wrong):
    with pytest.raises(ConfigError) as caught:
        PipelineLayout.parse(text)
    error = caught.value
    where = "" if position is None else f"at character {position}: "
    assert error.what.startswith(f"{FIELD} is {text!r}; {where}{wrong}")
    assert (error.field, error.value, error.path, error.position) == (FIELD, text, f"config.{FIELD}", position)


@pytest.mark.parametrize(
    ("layers", "stages", "virtual", "wrong"),
    [
        (4, 2, None, "it has 3 layers (t), and num_layers is 4."),
        (3, 3, None, "it has 2 chunks, and 3 pipeline stages need 3."),
        (3, 2, 2, "it has 2 chunks, and 2 pipeline stages of 2 virtual stages each need 4."),
    ],
)
def test_layout_of_another_model_is_refused(layers, stages, virtual, wrong):
    with pytest.raises(ConfigError) as caught:
        config(layers, stages, virtual, pipeline_model_parallel_layout="Ett|tL")
    assert caught.value.what == f"{FIELD} is 'Ett|tL'; {wrong}"
    assert (caught.value.field, caught.value.position) == (FIELD, None)
