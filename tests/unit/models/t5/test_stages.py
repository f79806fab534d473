"""Pipeline stages of T5: together they compute what the whole does, and every tensor has one owner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom.errors import ConfigError, InputError

POSITIONS = ["learned_absolute", "rope", "relative"]
STAGES: list[dict[str, Any]] = [
    {"add_decoder": False, "post_process": False, "encoder_layers": [1]},
    {"add_decoder": False, "pre_process": False, "encoder_layers": [2]},
    {"add_encoder": False, "post_process": False, "decoder_layers": [1]},
    {"add_encoder": False, "pre_process": False, "decoder_layers": [2]},
]


def state_of_stage(whole: dict[str, Tensor], stage: Any) -> dict[str, Tensor]:
    """Pick a stage's tensors out of the whole model's, by the keys that it gives them."""
    return {name: whole[shard.key] for name, shard in stage.sharded_state_dict().items()}


@pytest.fixture
def split(make_t5: Any) -> Any:
    """Give a function that makes a whole T5 and its stages with the same weights."""

    def make(**arguments: Any) -> tuple[Any, list[Any]]:
        whole = make_t5(**arguments)
        stages = [make_t5(seed=1, **arguments, **stage) for stage in STAGES]
        for stage in stages:
            stage.load_state_dict(state_of_stage(whole.state_dict(), stage))
        return whole, stages

    return make


@pytest.mark.parametrize("shared", [False, True], ids=["own weight", "tied"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_stages_compute_what_the_whole_does(kind: str, shared: bool, split: Any, ids: Any) -> None:
    whole, (first, second, third, last) = split(
        position_embedding_type=kind, share_embeddings_and_output_weights=shared
    )
    read, written, labels = ids(2, 7), ids(2, 5, seed=1), ids(2, 5, seed=2)
    padding = torch.arange(7) < torch.tensor([[7], [4]])
    masks = padding, None, padding
    second.set_input_tensor(first(read, None, *masks))
    hidden = second(None, None, *masks)
    torch.testing.assert_close(hidden, whole.encode(read, padding), atol=1e-5, rtol=1e-5)
    third.set_input_tensor([hidden])
    last.set_input_tensor([third(None, written, *masks), hidden])
    logits = last(None, written, *masks)
    torch.testing.assert_close(logits, whole(read, written, *masks), atol=1e-5, rtol=1e-5)
    losses = last(None, written, *masks, lm_labels=labels)
    torch.testing.assert_close(losses, whole(read, written, *masks, lm_labels=labels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["own weight", "tied"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_every_tensor_has_one_owner_among_the_stages(kind: str, shared: bool, split: Any) -> None:
    whole, stages = split(position_embedding_type=kind, share_embeddings_and_output_weights=shared)
    shards = [shard for stage in stages for shard in stage.sharded_state_dict("t5.").values()]
    owned = [shard.key for shard in shards if shard.is_main_replica]
    assert sorted(owned) == sorted(f"t5.{name}" for name in whole.state_dict())
    if kind == "relative":
        assert len(shards) > len(owned)


def test_a_whole_t5_owns_every_tensor(make_t5: Any) -> None:
    model = make_t5(position_embedding_type="relative", share_embeddings_and_output_weights=True)
    shards = model.sharded_state_dict()
    assert shards.keys() == model.state_dict().keys()
    assert all(shard.is_main_replica and shard.key == name for name, shard in shards.items())


def test_layers_are_numbered_over_the_whole_model(make_t5: Any) -> None:
    last = make_t5(**STAGES[3])
    assert [layer.layer_number for layer in last.decoder.layers] == [2]
    assert "decoder.layers.0.mlp.linear_fc1.weight" in last.state_dict()
    assert last.sharded_state_dict()["decoder.layers.0.mlp.linear_fc1.weight"].key.startswith("decoder.layers.1.")


def test_stages_have_what_is_theirs(make_t5: Any) -> None:
    first, second, third, last = (make_t5(**stage) for stage in STAGES)
    assert [stage.embedding is not None for stage in (first, second, third, last)] == [True, False, True, False]
    assert [stage.lm_head is not None for stage in (first, second, third, last)] == [False, False, False, True]
    assert [stage.encoder and stage.encoder.final_layernorm is not None for stage in (first, second)] == [False, True]
    assert [stage.decoder.final_layernorm is not None for stage in (third, last)] == [False, True]


@pytest.mark.parametrize(
    ("stage", "given", "text"),
    [
        ({}, 2, "2 tensors are given to a stage that takes 1"),
        (STAGES[0], 0, "0 tensors are given to a stage that takes 1"),
        (STAGES[3], 3, "3 tensors are given to a stage that takes 1 or 2"),
    ],
    ids=["whole", "encoder", "decoder"],
)
def test_a_stage_refuses_another_number_of_tensors(stage: Any, given: int, text: str, make_t5: Any) -> None:
    with pytest.raises(InputError, match=text):
        make_t5(**stage).set_input_tensor([torch.zeros(1, 3, 32)] * given)


def test_stages_refuse_what_they_cannot_do(make_t5: Any, ids: Any) -> None:
    first, second, third, last = (make_t5(**stage) for stage in STAGES)
    nothing = (None, None, None)
    with pytest.raises(InputError, match="nothing to start from") as error:
        second(None, None, *nothing)
    assert "set_input_tensor" in error.value.hint
    with pytest.raises(InputError, match="this stage has no encoder"):
        third.encode(ids(1, 4))
    with pytest.raises(InputError, match="this stage has no encoder"):
        third(None, None, *nothing, output_encoder_hidden_only=True)
    with pytest.raises(InputError, match="this stage has no decoder"):
        first.decode(ids(1, 4), torch.zeros(1, 3, 32))
    with pytest.raises(InputError, match="the decoder has nothing to read"):
        third(None, ids(1, 4), *nothing)
    last.set_input_tensor(torch.zeros(1, 3, 32))  # the encoder's alone: this stage needs the decoder's too
    with pytest.raises(InputError, match="nothing to start from"):
        last(None, ids(1, 4), *nothing)


@pytest.mark.parametrize(
    ("stage", "text", "field"),
    [
        (
            {"add_encoder": False, "add_decoder": False},
            "a stage without encoder and decoder does nothing",
            "add_decoder",
        ),
        ({"pre_process": False}, "needs the embedding: pre_process", "pre_process"),
    ],
    ids=["nothing", "no embedding"],
)
def test_a_stage_that_cannot_be_is_refused(stage: Any, text: str, field: str, make_t5: Any) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        make_t5(**stage)
    assert error.value.field == field
