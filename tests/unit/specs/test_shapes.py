"""Shapes of parameters on ranks: those of models that are really built, and FSDP2's rule."""

from __future__ import annotations

import pytest
import torch
import transom
from transom.specs.shapes import data_share, gathered_numbers, shapes_of


@pytest.mark.parametrize(
    "config",
    [{}, {"normalization": "LayerNorm", "add_bias_linear": True, "qk_layernorm": True}],
    ids=["plain", "biased"],
)
@pytest.mark.parametrize("recipe", ["tiny-llama", "tiny-gpt2"])
def test_shapes_are_those_of_the_model_that_is_built(recipe, config):
    spec = transom.load_spec(recipe).to_dict()
    made = transom.plan(spec | {"config": spec["config"] | config})
    with torch.device("meta"):
        built = transom.build(made)
    assert dict(shapes_of(made.root)) == {name: tuple(p.shape) for name, p in built.named_parameters()}


def test_what_no_request_tells_has_one_dimension():
    made = transom.plan("tiny-t5")
    assert dict(shapes_of(made.root))["own parameters"] == (2 * 32 * 4,)
    assert dict(shapes_of(made.root, 4))["own parameters"] == (2 * 32,)


def test_learned_sinks_are_told():
    spec = transom.load_spec("tiny-llama").to_dict()
    spec |= {"config": spec["config"] | {"softmax_type": "learnable"}, "use": {"core_attention": "dot_product"}}
    shapes = dict(shapes_of(transom.plan(spec).root, 2))
    assert shapes["layers.0.self_attention.core_attention.sinks"] == (3,)


@pytest.mark.parametrize("shape", [(10, 4), (8,), (3, 5), (1, 7)], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_first_rank_holds_the_first_chunk(shape, ranks):
    assert data_share(shape, ranks) == tuple(torch.empty(shape).chunk(ranks)[0].shape)


@pytest.mark.parametrize(("shape", "ranks", "share"), [((2, 6, 8), 4, (2, 6, 2)), ((2, 6, 9), 4, (1, 6, 9))])
def test_stacked_matrices_are_split_along_the_last_dimension_where_it_divides(shape, ranks, share):
    assert data_share(shape, ranks) == share


def test_padding_is_gathered():
    assert gathered_numbers({"weight": (10, 4), "bias": (10,)}, 4) == 12 * 4 + 12
