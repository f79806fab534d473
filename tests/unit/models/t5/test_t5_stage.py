"""Stages of a pipeline: together they compute what the whole does, and have its weights and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom.composition import build_stages
from transom.specs.plan import plan

CONFIG = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "ffn_hidden_size": 24,
    "position_embedding_type": "relative",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "params_dtype": "float64",
}
TIED = {"share_embeddings_and_output_weights": True}


def described(changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    top = {name: value for name, value in changes.items() if name in TIED or name == "encoder_config"}
    config = CONFIG | {name: value for name, value in changes.items() if name not in top} | fields
    if "encoder_config" in top:
        top["encoder_config"] = CONFIG | top["encoder_config"]
    return {"model": "t5", "vocab_size": 40, "max_sequence_length": 16, "config": config, **top}


def stages_of(pp: int, split: int | None, changes: dict[str, Any], seed: int = 0) -> list[nn.Module]:
    cut = {} if split is None else {"pipeline_model_parallel_split_rank": split}
    made = plan(described(changes, pipeline_model_parallel_size=pp, **cut))
    return [stage for place in range(pp) for stage in build_stages(made, place=place, seed=seed)]


def run(stages: list[nn.Module], read: Tensor, **batch: Tensor) -> Tensor:
    handed: tuple[Tensor, ...] = (read,)
    for stage in stages:
        given = stage(*handed, **batch)
        handed = given if isinstance(given, tuple) else (given,)
    return handed[0]


@pytest.mark.parametrize(
    ("pp", "split", "changes"),
    [
        (2, None, {}),
        (4, 2, TIED),
        (3, 1, TIED | {"position_embedding_type": "learned_absolute"}),
        (4, 3, {"encoder_config": {"num_layers": 3}, "position_embedding_type": "relative"}),
        (2, 1, {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}),
        (2, 1, {"fp32_residual_connection": True, "params_dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_stages_compute_what_the_whole_does(pp: int, split: int | None, changes: dict[str, Any]) -> None:
    whole, stages = transom.build(described(changes), seed=0), stages_of(pp, split, changes)
    read, written, labels = (torch.randint(40, (3, n)) for n in (7, 5, 5))
    batch = {"decoder_input_ids": written, "lm_labels": labels.masked_fill(labels < 8, -100)}
    losses, expected = run(stages, read, **batch), whole(read, written, None, None, None, lm_labels=batch["lm_labels"])
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    expected.sum().backward()
    weights = dict(whole.named_parameters())
    gradients: dict[str, Tensor] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            assert torch.equal(parameter, weights[name])
            gradients[name] = gradients.get(name, torch.zeros(())) + parameter.grad
    assert gradients.keys() == weights.keys()
    tolerance = {} if weights["embedding.word_embeddings.weight"].itemsize > 2 else {"rtol": 0.05, "atol": 0.02}
    for name, parameter in weights.items():
        torch.testing.assert_close(gradients[name], parameter.grad, **tolerance)


@pytest.mark.parametrize("changes", [{}, TIED], ids=str)
def test_stages_name_all_that_others_have_too(changes: dict[str, Any]) -> None:
    stages = stages_of(4, 2, changes)
    held = [{name for name, _ in stage.named_parameters()} for stage in stages]
    for number, stage in enumerate(stages):
        others = set().union(*(names for other, names in enumerate(held) if other != number))
        assert held[number] & others <= {name for name, _ in stage.shared()}


def test_stages_load_what_the_whole_saved_and_the_other_way_round() -> None:
    whole, stages = transom.build(described(TIED), seed=0), stages_of(3, 2, TIED, seed=1)
    state = whole.state_dict()
    found: dict[str, Tensor] = {}
    for stage in stages:
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})
        assert {shard.key for shard in stage.sharded_state_dict().values()} == stage.state_dict().keys()
        found |= stage.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_last_stages_hand_on_nothing_but_losses_and_others_what_the_decoder_reads() -> None:
    first, second, third, last = stages_of(4, 2, {})
    ids = torch.zeros(2, 5, dtype=torch.long)
    batch = {"decoder_input_ids": ids, "lm_labels": ids}
    hidden = first(torch.zeros(2, 7, dtype=torch.long), **batch)
    read = second(hidden, **batch)
    written, again = third(read, **batch)
    assert (hidden.shape, read.shape, written.shape) == ((2, 7, 16), (2, 7, 16), (2, 5, 16))
    assert torch.equal(again, read)
    assert last(written, again, **batch).shape == (2, 5)
