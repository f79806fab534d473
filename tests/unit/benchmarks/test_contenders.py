"""What is compared is one function; no time is taken here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transom
from benchmarks.by_hand import by_hand
from benchmarks.contenders.contender import DifferentFunctionError, check_results, check_same, gathered
from benchmarks.contenders.everybody import encoder_decoders, llamas
from benchmarks.monolith import Shape
from benchmarks.monolith_t5 import T5Shape
from benchmarks.suites.gpu import training_flops
from benchmarks.workloads import decoding, inferring, matrices, random_ids, training

SHAPE = Shape(vocab=61, hidden=64, layers=2, heads=4, groups=2, ffn=48, length=64)
T5_SHAPE = T5Shape(vocab=61, hidden=32, layers=2, heads=2, ffn=48, buckets=8, max_distance=12)


@pytest.fixture(scope="module")
def found():
    # Of the other libraries only transformers is installed with what the tests need; the rest is absent by name.
    return llamas(SHAPE, torch.float32, "cpu", ("torchtune", "x-transformers"))[0]


@pytest.fixture(scope="module")
def found_t5():
    return encoder_decoders(T5_SHAPE, torch.float32, "cpu")[0]


def test_llamas_are_one_function(found):
    names = [each.name for each in found]
    assert names[:3] == ["monolith", "transom", "transom, dot_product"]
    assert names[-1] == "transformers"
    check_same(found, random_ids(SHAPE.vocab, 2, 20))


def test_t5s_are_one_function(found_t5):
    assert [each.name for each in found_t5] == [
        "monolith",
        "transom",
        "transom, dot_product",
        "transom, onednn_linear",
        "transformers",
    ]
    check_same(found_t5, random_ids(T5_SHAPE.vocab, 2, 20))


def test_contender_that_differs_is_an_error(found):
    wrong = replace(found[1], name="wrong", logits=lambda ids: found[1].logits(ids) * 1.01)
    with pytest.raises(DifferentFunctionError, match=r"^logits: wrong differs from monolith by 1\.0e-02$"):
        check_same([found[0], wrong], random_ids(SHAPE.vocab, 2, 8))


def test_results_that_are_no_tensors_are_not_compared():
    check_results("seconds", {"one": torch.ones(2), "limit": None, "other": torch.ones(2)}, 0.0)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (torch.tensor([1.0, torch.nan]), "loss: other differs from one by nan"),
        (torch.ones(1), r"loss: other gives \[1\], one \[2\]"),
    ],
)
def test_results_that_are_no_numbers_or_of_another_shape_are_different(other, text):
    with pytest.raises(DifferentFunctionError, match=text):
        check_results("loss", {"one": torch.ones(2), "other": other}, 1.0)


def test_everybody_who_takes_no_part_is_named(found):
    _, absent = llamas(SHAPE, torch.float32, "cpu", ("torchtune", "x-transformers"))
    assert absent["torchtune"] == absent["x-transformers"] == "left out, --without"
    assert absent["transom, torch_flex"].startswith("torch's flex_attention has no backward pass on the cpu")
    assert absent["transom, te_linear"].endswith("which is not installed")
    assert not set(absent) & {each.name for each in found}


def test_libraries_without_a_t5_are_named():
    absent = encoder_decoders(T5_SHAPE, torch.float32, "cpu")[1]
    assert absent["torchtune"] == "it has the encoder of a T5 alone"


def test_who_cannot_be_made_is_absent_with_the_reason(found):
    def broken():
        raise ImportError("No module named 'torchtune'")

    made, absent = gathered({"one": lambda: found[0], "other": broken})
    assert (made, absent) == ([found[0]], {"other": "ImportError: No module named 'torchtune'"})


def test_workloads_leave_weights_as_they_were(found):
    ids = random_ids(SHAPE.vocab, 2, 8)
    for each in found[:2]:
        before = inferring(each, ids)()
        loss = training(each, ids)()
        assert training(each, ids)() == loss
        assert decoding(each, ids, 3)().shape == (2, 3)
        assert torch.equal(inferring(each, ids)(), before)


def test_matrices_are_what_each_token_is_multiplied_with(found, found_t5):
    h, d = SHAPE.hidden, SHAPE.head_size
    layer = (SHAPE.heads + 2 * SHAPE.groups) * d * h + h * h + 3 * h * SHAPE.ffn
    assert sum(each.numel() for each in matrices(found)) == SHAPE.layers * layer + SHAPE.vocab * h
    h = T5_SHAPE.hidden
    layer = 4 * h * h + 2 * h * h + 3 * h * T5_SHAPE.ffn
    assert sum(each.numel() for each in matrices(found_t5)) == T5_SHAPE.layers * layer + T5_SHAPE.vocab * h


def test_training_flops_counts_products_of_weights_and_of_causal_attention(found):
    rows, tokens = 3, 10
    weights = sum(each.numel() for each in matrices(found))
    pairs = tokens**2 / 2  # of a query and a key, causal, each in two products of d, forward and twice that backward
    attention = SHAPE.layers * SHAPE.heads * pairs * 2 * 2 * SHAPE.head_size * 3
    assert training_flops(found[0].module, rows, tokens) == pytest.approx(rows * (tokens * 6 * weights + attention))


def test_classes_composed_by_hand_are_the_built_model():
    model = transom.build("tiny-llama", seed=0).eval()
    hand = by_hand(model.plan.root, {})(model.plan.config).eval()
    hand.load_state_dict(model.state_dict())
    ids = random_ids(256, 1, 8)
    assert torch.equal(hand(ids), model(ids))
