"""What `model: t5` plans and builds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transom
from torch.utils.flop_counter import FlopCounterMode
from transom.costs import measure
from transom.errors import ConfigError, MaskError, ResolutionError
from transom.models.t5 import T5Model
from transom.specs.lock import Lock
from transom.specs.page import render_page
from transom.specs.render import render_plan
from transom.specs.shares import split
from transom.specs.totals import costs, totals
from transom.specs.world import parse_world

CONFIG = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def spec_of(**changes: Any) -> dict[str, Any]:
    config = CONFIG | changes.pop("config", {})
    return {"model": "t5", "vocab_size": 61, "max_sequence_length": 24, "config": config} | changes


VARIANTS = {
    "learned": {},
    "rope": {"config": {"position_embedding_type": "rope"}},
    "relative": {"config": {"position_embedding_type": "relative"}},
    "tied": {"share_embeddings_and_output_weights": True},
    "tied without bias": {"share_embeddings_and_output_weights": True, "options": {"model": {"tied_bias": False}}},
    "deep encoder": {
        "encoder_config": CONFIG | {"num_layers": 3},
        "config": {"position_embedding_type": "learned_absolute"},
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_plan_tells_every_parameter_and_product_of_what_is_built(changes: dict[str, Any]) -> None:
    plan = transom.plan(spec_of(**changes))
    with torch.device("meta"):
        model = transom.build(plan, device="meta")
        ids = torch.zeros(1, 24, dtype=torch.long)
    assert isinstance(model, T5Model)
    found = totals(plan).cost
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, ids, None, None, None)
    assert found.flops == counter.get_total_flops() // 24
    assert found.is_complete
    assert measure(plan) == {}


def test_plan_names_every_place_by_its_module() -> None:
    plan = transom.plan(spec_of(config={"position_embedding_type": "relative"}))
    model = transom.build(plan, device="meta")
    late = {"loss", "cache"}
    assert all(model.get_submodule(node.path) is not None for node in plan.nodes() if node.path not in late)
    text = render_plan(plan)
    assert "encoder.layers.0 to 1 (2 alike)" in text
    assert "decoder.layers.0 to 1 (2 alike)" in text


def test_only_what_writes_is_cached_and_what_it_reads() -> None:
    found = costs(transom.plan(spec_of()))
    per_layer = 2 * 2 * 8 * 4  # keys and values, groups, head size, bytes
    assert found["encoder.layers.0"].kv_bytes == 0
    assert found["decoder.layers.0.self_attention"].kv_bytes == per_layer
    assert found["decoder.layers.0.cross_attention"].kv_bytes == per_layer
    assert found[""].kv_bytes == 2 * 2 * per_layer


def test_places_of_encoder_and_decoder_are_filled_apart() -> None:
    use = {"encoder.layers.*.self_attention.core_attention": "torch_dot_product", "core_attention": "dot_product"}
    spec = spec_of(config={"position_embedding_type": "relative"})
    plan = transom.plan(spec, use=use)
    chosen = {node.path: node.resolution.chosen.name for node in plan.nodes() if node.slot == "core_attention"}
    assert {name for path, name in chosen.items() if path.startswith("encoder")} == {"torch_dot_product"}
    assert {name for path, name in chosen.items() if path.startswith("decoder")} == {"dot_product"}
    ids = torch.arange(12).view(2, 6)
    ours, swapped = (transom.build(spec, use=each, seed=0) for each in ({}, use))
    arguments = (ids, ids, None, None, None)
    torch.testing.assert_close(ours(*arguments), swapped(*arguments), atol=1e-5, rtol=1e-5)


def test_encoder_is_asked_for_no_causality() -> None:
    nodes = {node.path: node for node in transom.plan(spec_of(), mode="infer").nodes()}
    asked = {
        side: nodes[f"{side}.layers.0.self_attention.core_attention"].request.features
        for side in ("encoder", "decoder")
    }
    assert asked["encoder"] == {"gqa"}
    assert asked["decoder"] == {"gqa", "causal", "bottom_right", "positions"}
    assert nodes["decoder.layers.0.cross_attention.core_attention"].request.features == {"gqa", "cross"}


def test_relative_positions_are_asked_for_where_they_are_told() -> None:
    def asked(mode: Any) -> dict[str, frozenset[str]]:
        plan = transom.plan(spec_of(config={"position_embedding_type": "relative"}), mode=mode)
        return {node.path: node.request.features for node in plan.nodes() if node.slot == "core_attention"}

    assert "bias_grad" in asked("train")["encoder.layers.0.self_attention.core_attention"]
    assert "bias" in asked("infer")["decoder.layers.1.self_attention.core_attention"]
    assert not {"bias", "bias_grad"} & asked("train")["decoder.layers.1.cross_attention.core_attention"]


def test_a_lock_of_a_t5_gives_the_same_plan() -> None:
    spec = spec_of(encoder_config=CONFIG | {"num_layers": 3})
    plan = transom.plan(spec)
    lock = Lock.from_plan(plan)
    assert transom.plan(spec, lock=lock, lock_mode="exact").fingerprint == plan.fingerprint
    other = spec | {"encoder_config": CONFIG | {"num_layers": 3, "ffn_hidden_size": 64}}
    assert transom.plan(other).fingerprint != plan.fingerprint
    activation = spec | {"encoder_config": CONFIG | {"num_layers": 3, "activation_func": "relu"}}
    assert transom.plan(activation).fingerprint != plan.fingerprint


def test_spec_with_an_encoder_config_is_data() -> None:
    spec = transom.load_spec(spec_of(encoder_config=CONFIG | {"num_layers": 3}))
    data = json.loads(json.dumps(spec.to_dict()))
    assert transom.load_spec(data).encoder_config == spec.encoder_config
    plan = transom.plan(spec, dtype="bfloat16")
    assert plan.root.request.encoder_config.params_dtype == "bfloat16"
    assert next(transom.build(plan, device="meta").encoder.parameters()).dtype is torch.bfloat16


def test_page_shows_a_t5() -> None:
    page = render_page(transom.plan(spec_of()))
    assert "encoder.<wbr>layers" in page
    assert "decoder.<wbr>layers" in page


def test_ranks_share_an_encoder_decoder_of_one_stage() -> None:
    plan = transom.plan(spec_of())
    (stage,) = split(plan, parse_world("tp=1"))
    assert stage.cost.parameters == totals(plan).cost.parameters
    assert stage.layers == ((0, 4),)
    assert [stage.layers for stage in split(plan, parse_world("pp=2"))] == [((0, 2),), ((2, 4),)]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {"pipeline_model_parallel_size": 4, "pipeline_model_parallel_split_rank": 3},
            "2 layers of an encoder do not divide over 3 pipeline stages",
        ),
        ({"num_layers_in_first_pipeline_stage": 1}, "an encoder and a decoder are each cut evenly"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_when_planned(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ResolutionError, match=what):
        transom.plan(spec_of(config={"pipeline_model_parallel_size": 2} | config))


def test_a_decoder_refuses_an_encoders_config() -> None:
    with pytest.raises(ResolutionError, match="encoder_decoder"):
        transom.plan(spec_of(model="decoder", encoder_config=CONFIG))


def test_an_encoder_that_does_not_fit_is_refused_when_planned() -> None:
    with pytest.raises(ResolutionError, match="the encoder's hidden_size is 64 and the decoder's 32"):
        transom.plan(spec_of(encoder_config=CONFIG | {"hidden_size": 64}))
    with pytest.raises(ResolutionError, match="alibi is for decoder-only models"):
        transom.plan(spec_of(config={"position_embedding_type": "alibi"}))


@pytest.mark.parametrize("field", ["final_logit_softcapping", "embedding_multiplier"])
def test_what_t5_does_not_compute_is_refused_when_planned(field: str) -> None:
    with pytest.raises(ResolutionError, match=f"{field} is for decoder-only models"):
        transom.plan(spec_of(config={field: 2.0}))


def test_too_many_encoder_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_layers is 20000; at most 10000 layers are planned") as error:
        transom.plan(spec_of(encoder_config=CONFIG | {"num_layers": 20_000}))
    assert error.value.path == "encoder_config.num_layers"


def test_masks_that_the_spec_does_not_name_are_refused() -> None:
    model, ids = transom.build(spec_of(), seed=0), torch.arange(6).view(1, 6)
    with pytest.raises(MaskError, match="not built for masks of kind padding") as error:
        model(ids, ids, torch.ones(1, 6, dtype=torch.bool), None, None)
    assert "masks: [padding]" in error.value.hint
