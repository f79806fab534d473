from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.checkpoint.model_state import model_tensors, put_tensors, weights_to_put
from transom.errors import CheckpointError


def test_model_tensors_stores_a_shared_parameter_once(tools):
    model, _ = tools[0](tie=True)
    tensors, tied = model_tensors(model)
    assert list(tensors) == ["count", "embedding.weight", "middle.weight", "middle.bias"]
    assert tied == {"output.weight": "embedding.weight"}


def test_model_tensors_tells_parameters_apart_that_are_only_equal(tools):
    model, _ = tools[0](tie=False)
    with torch.no_grad():
        model.output.weight.copy_(model.embedding.weight)
    tensors, tied = model_tensors(model)
    assert "output.weight" in tensors
    assert tied == {}


def test_model_tensors_tells_empty_parameters_apart():
    model = nn.ParameterDict({"a": torch.zeros(0), "b": torch.zeros(0)})
    assert model_tensors(model) == ({"a": model["a"], "b": model["b"]}, {})


def test_extra_state_is_neither_stored_nor_asked_for(tools):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": 1}

    model = Extra(2, 2)
    tensors, _ = model_tensors(model)
    assert set(tensors) == {"weight", "bias"}
    assert len(list(weights_to_put(Extra(2, 2), tensors, {}, source="f"))) == 2


@pytest.mark.parametrize("tie", [True, False])
def test_weights_arrive_bit_for_bit_and_stay_tied(tools, tie):
    source, _ = tools[0](0, tie=tie)
    target, _ = tools[0](1, tie=tie)
    put_tensors(weights_to_put(target, *model_tensors(source), source="f"))
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())
    assert (target.output.weight is target.embedding.weight) == tie


def test_weights_of_a_tied_model_fill_both_places_of_an_untied_one(tools):
    source, _ = tools[0](0, tie=True)
    target, _ = tools[0](1, tie=False)
    put_tensors(weights_to_put(target, *model_tensors(source), source="f"))
    assert torch.equal(target.output.weight, source.embedding.weight)


def test_weights_take_the_models_dtype(tools):
    source, _ = tools[0](0)
    target = tools[0](1)[0].to(torch.bfloat16)
    put_tensors(weights_to_put(target, *model_tensors(source), source="f"))
    assert torch.equal(target.middle.weight, source.middle.weight.to(torch.bfloat16))


def test_two_different_tensors_for_one_parameter_are_refused(tools):
    source, _ = tools[0](0, tie=False)
    target, _ = tools[0](1, tie=True)
    with pytest.raises(CheckpointError, match="1 difference; nothing was loaded") as caught:
        weights_to_put(target, *model_tensors(source), source="f")
    assert caught.value.problems == (
        "output.weight and embedding.weight are one parameter of the model, and two in the checkpoint",
    )


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(tools):
    source, _ = tools[0](0, tie=False)
    stored, tied = model_tensors(source)
    del stored["middle.bias"]
    stored["stray"] = torch.zeros(1)
    stored["middle.weight"] = torch.zeros(2, 3)
    stored["count"] = torch.zeros(())
    target, _ = tools[0](1, tie=False)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match="the weights are not this model's: 4 differences") as caught:
        weights_to_put(target, stored, tied, source="run/weights.safetensors")
    assert caught.value.problems == (
        "count is float32; the model's is int64",
        "middle.bias is missing",
        "middle.weight has shape [2, 3]; the model's is [6, 6]",
        "stray has no place in the model",
    )
    assert "Asked by:   run/weights.safetensors" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_long_list_is_cut_and_kept_whole_as_data(tools):
    stray = {f"stray.{i:02d}": torch.zeros(1) for i in range(30)}
    model, _ = tools[0]()
    stored, tied = model_tensors(model)
    with pytest.raises(CheckpointError, match=r"\.\.\. and 10 more") as caught:
        weights_to_put(model, stored | stray, tied, source="f")
    assert len(caught.value.problems) == 30
