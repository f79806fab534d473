"""Norms and linears in one module: who is asked, who keeps them apart, and what becomes of models and states."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transom
from torch import nn
from transom.checkpoint.module_layout import own_tensors, to_canonical
from transom.costs import measure
from transom.errors import PlanMismatchError, ResolutionError, SpecError
from transom.registry.registry import Registry, default_registry
from transom.specs.lock import Lock
from transom.specs.totals import totals
from transom.training.run import train

CONFIG = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48, "num_query_groups": 2,
    "position_embedding_type": "rope", "hidden_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
FUSED = {"norm_linear": "torch_norm_linear"}
TOKENS = torch.arange(12).view(2, 6)
PLACES = ("self_attention.linear_qkv", "mlp.linear_fc1")
MODELS = {
    "plain": {},
    "gated, RMSNorm, no bias": {
        "normalization": "RMSNorm", "gated_linear_unit": True, "activation_func": "silu", "add_bias_linear": False
    },
    "norms before and after, of heads, zero-centred": {
        "normalization": "RMSNorm", "layernorm_zero_centered_gamma": True, "qk_layernorm": True,
        "post_attention_layernorm": True, "post_mlp_layernorm": True,
    },
    "parallel": {"parallel_residual": True},
}  # fmt: skip


def spec(config: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    plain = {"name": "tiny", "vocab_size": 32, "max_sequence_length": 16, "config": CONFIG | (config or {})}
    return plain | fields


def chosen(plan: transom.Plan) -> dict[str, tuple[str, str]]:
    return {node.path: (node.slot, node.resolution.chosen.name) for node in plan.nodes()}


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_nothing_is_in_one_module_until_somebody_names_it():
    assert not [node for node in transom.plan(spec()).nodes() if node.slot == "norm_linear" or node.within]


def test_plan_shows_both_places_filled_by_the_one_module():
    made = transom.plan(spec(), use=FUSED)
    found = chosen(made)
    nodes = {node.path: node for node in made.nodes()}
    for place, norm in zip(PLACES, ("input_layernorm", "pre_mlp_layernorm"), strict=True):
        assert found[f"layers.1.{place}"] == ("norm_linear", "torch_norm_linear")
        assert found[f"layers.1.{norm}"] == ("norm", "torch_norm_linear")
        assert nodes[f"layers.1.{norm}"].within == f"layers.1.{place}"
        assert nodes[f"layers.1.{norm}"].to_dict()["within"] == f"layers.1.{place}"
    assert found["final_layernorm"] == ("norm", "torch_norm")
    assert "filled by the module at mlp.linear_fc1, which norms its input" in " ".join(str(made).split())
    assert "layers.0 to 1 (2 alike)" in str(made)
    assert made.to_dict()["totals"] == transom.plan(spec()).to_dict()["totals"]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_model_computes_and_learns_as_with_two_modules(config):
    apart = shaken(transom.build(spec(config), dtype="float64", seed=0))
    fused = transom.build(spec(config), dtype="float64", use=FUSED, seed=0)
    assert apart.state_dict().keys() == fused.state_dict().keys()
    fused.load_state_dict(apart.state_dict())
    torch.testing.assert_close(fused(TOKENS), apart(TOKENS))
    for model in (fused, apart):
        model(TOKENS).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in own_tensors(fused).items()}
    canonical = to_canonical(fused, grads, moments=True)
    for name, parameter in apart.named_parameters():
        torch.testing.assert_close(canonical[name], parameter.grad, msg=name)
    shards, wanted = fused.sharded_state_dict(), apart.sharded_state_dict()
    assert {name: shard.key for name, shard in shards.items()} == {name: shard.key for name, shard in wanted.items()}


def test_encoder_decoder_has_its_norms_in_what_they_feed():
    data = spec({"position_embedding_type": "learned_absolute"}, model="t5")
    made = transom.plan(data, use=FUSED)
    found = chosen(made)
    fused = {path.partition("layers.0.")[2] for path, (slot, _) in found.items() if slot == "norm_linear"} - {""}
    assert fused == {*PLACES, "cross_attention.linear_q"}
    apart, model = (transom.build(data, use=use, seed=0).eval() for use in ({}, FUSED))
    shaken(apart)
    assert apart.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(apart.state_dict())
    given = (TOKENS, TOKENS, None, None, None)
    torch.testing.assert_close(model(*given), apart(*given))


QKV = {f"layers.{i}.self_attention.linear_qkv" for i in range(2)}
FC1 = {f"layers.{i}.mlp.linear_fc1" for i in range(2)}


@pytest.mark.parametrize(
    ("use", "fused"),
    [
        ({"layers.0.self_attention.linear_qkv": "torch_norm_linear"}, {min(QKV)}),
        ({"layers.*.mlp.linear_fc1": "torch_norm_linear | separate"}, FC1),
        ({**FUSED, "layers.*.mlp.*": "torch_linear"}, QKV),
        ({**FUSED, "**.mlp.linear_fc1": "separate", "layers.1.input_layernorm": "torch_norm"}, {min(QKV)}),
        ({"norm_linear": "separate"}, set()),
    ],
    ids=["a path", "a glob", "linears by path", "kept apart", "separate"],
)
def test_narrower_entries_decide(use, fused):
    found = chosen(transom.plan(spec(use=use)))
    assert {path for path, (slot, _) in found.items() if slot == "norm_linear"} == fused


def test_an_entry_of_the_call_for_one_of_the_slots_keeps_them_apart():
    made = transom.plan(spec(use=FUSED), use={"norm": "torch_norm"})
    assert "norm_linear" not in {slot for slot, _ in chosen(made).values()}
    made = transom.plan(spec(use={**FUSED, "norm": "torch_norm", "linear": "torch_linear"}))
    assert chosen(made)["layers.0.mlp.linear_fc1"] == ("norm_linear", "torch_norm_linear")


def test_chain_falls_through_to_two_modules_with_one_line(caplog):
    use = {"norm_linear": "te_layernorm_linear_of_old | separate"}
    with caplog.at_level(logging.INFO, "transom"):
        made = transom.plan(spec(), use=use, registry=Registry(default_registry().index))
    passed_over = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(passed_over) == 1
    assert passed_over[0].startswith("norm_linear te_layernorm_linear_of_old is passed over (missing): ")
    node = next(node for node in made.nodes() if node.path == "layers.0.mlp.linear_fc1")
    assert (node.slot, node.resolution.chosen.name) == ("column_linear", "torch_linear")
    assert [(verdict.slot, verdict.stage) for verdict in node.resolution.refused] == [("norm_linear", "missing")]


def test_chain_without_a_way_to_go_on_is_refused():
    config = {"tensor_model_parallel_size": 2}
    with pytest.raises(ResolutionError, match="norm_linear 'torch_norm_linear' cannot serve") as caught:
        transom.plan(spec(config), use=FUSED | {"linear": "parallel_linear", "embedding": "parallel_linear"})
    assert "does not declare tensor_parallel" in caught.value.failed[0]
    assert caught.value.asked_by == "use.norm_linear in the call's arguments"


def test_separate_stands_last():
    with pytest.raises(SpecError, match="names after 'separate' would never be tried") as caught:
        transom.plan(spec(), use={"norm_linear": "separate | torch_norm_linear"})
    assert caught.value.what == "names after 'separate' would never be tried: separate | torch_norm_linear."
    assert caught.value.hint == "write separate last"


@pytest.mark.parametrize(
    "config",
    [
        {"pre_layernorm": False, "post_attention_layernorm": True, "post_mlp_layernorm": True},
        {"fp32_residual_connection": True, "params_dtype": "bfloat16"},
        {"recompute_granularity": "selective", "recompute_modules": ("layernorm",)},
    ],
    ids=["norms at the ends alone", "a wide residual", "recomputed norms"],
)
def test_entry_without_a_place_is_refused(config):
    with pytest.raises(SpecError, match="no part of the model is in slot 'norm_linear'") as caught:
        transom.plan(spec(config), use=FUSED)
    assert "it needs a norm that feeds a linear alone" in caught.value.hint


def test_entry_for_a_norm_that_was_taken_in_is_refused():
    use = {"layers.0.mlp.linear_fc1": "torch_norm_linear", "layers.0.pre_mlp_layernorm": "torch_norm"}
    with pytest.raises(SpecError, match="which brings its norm along") as caught:
        transom.plan(spec(), use=use)
    assert caught.value.what == (
        "layers.0.pre_mlp_layernorm is filled by transom/torch_norm_linear, at layers.0.mlp.linear_fc1, which brings "
        "its norm along, so use.layers.0.pre_mlp_layernorm would have no effect."
    )
    assert caught.value.path == "use.layers.0.pre_mlp_layernorm"
    assert caught.value.hint == "another name at layers.0.mlp.linear_fc1, or leave the entry out"


def test_lock_holds_what_is_in_one_module(tmp_path):
    made = transom.plan(spec(use=FUSED))
    lock = Lock.from_plan(made)
    again = transom.plan(spec(use=FUSED), lock=lock, lock_mode="exact")
    assert again.fingerprint == made.fingerprint != transom.plan(spec()).fingerprint
    with pytest.raises(PlanMismatchError) as caught:
        transom.plan(spec(), lock=lock)
    assert (
        "layers.0.self_attention.linear_qkv: transom/torch_norm_linear was locked for torch_norm_linear, now separate "
        "is asked for"
    ) in caught.value.differences


def test_lock_holds_what_is_apart():
    chain = {"norm_linear": "no_such_thing | separate"}
    made = transom.plan(spec(use=chain))
    assert transom.plan(spec(use=chain), lock=Lock.from_plan(made)).fingerprint == made.fingerprint
    with pytest.raises(PlanMismatchError) as caught:
        transom.plan(spec(use=FUSED), lock=Lock.from_plan(transom.plan(spec())))
    assert ("layers.0.mlp.linear_fc1: slot column_linear was locked, now norm_linear") in caught.value.differences


def test_run_goes_on_with_norm_and_linear_in_one_module(tmp_path):
    """A checkpoint, its optimizer's state included, does not know who made it."""
    (tmp_path / "corpus.txt").write_text("norms and linears " * 100)
    section = {"data": str(tmp_path / "corpus.txt"), "steps": 3, "batch_size": 2, "sequence_length": 8}
    data = spec(vocab_size=256, train=section)
    whole = train(data, out=tmp_path / "whole")
    train(data, out=tmp_path / "first", steps=1)
    resumed = train(data, out=tmp_path / "first", steps=3, resume=True, use=FUSED)
    assert resumed.loss == pytest.approx(whole.loss, rel=1e-5)


def test_model_with_one_module_decodes_over_its_cache():
    model = transom.build(spec(), use=FUSED, mode="infer", seed=0)
    whole = model(TOKENS)
    model.setup_caches(2)
    for step in range(TOKENS.shape[1]):
        out = model(TOKENS[:, step : step + 1], input_pos=torch.tensor([step]))
        torch.testing.assert_close(out, whole[:, step : step + 1])


NORMED = """
from dataclasses import dataclass
from typing import Any

from torch import nn
from transom.transformer.mlp import MLP, MLPSubmodules
from transom.transformer.norm import TorchNorm


class NormedMLP(nn.Module):
    @dataclass
    class Submodules:
        linear_fc1: Any
        linear_fc2: Any

    def __init__(self, config, submodules, *, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
        super().__init__()
        self.norm = TorchNorm(config, config.hidden_size, config.layernorm_epsilon)
        mlp = MLP(config, MLPSubmodules(submodules.linear_fc1, submodules.linear_fc2))
        self.linear_fc1, self.linear_fc2, self.activation = mlp.linear_fc1, mlp.linear_fc2, mlp.activation_func

    @classmethod
    def parts(cls, request):
        return MLP.parts(request)

    def forward(self, hidden_states, per_token_scale=None):
        inner, bias = self.linear_fc1(self.norm(hidden_states))
        return self.linear_fc2(self.activation(inner + bias))
"""
CARD = """
card = 1
[mlp.normed_mlp]
api = "1.1"
devices = ["any"]
dtypes = ["any"]
modes = ["train"]
includes_norm = true
"""


@pytest.fixture
def normed(site):
    site.install("acme-mlp", {"mlp": {"normed_mlp": "NormedMLP"}}, code=NORMED, card=CARD)
    return Registry()


def test_mlp_that_brings_its_norm_fills_both_places(normed):
    made = transom.plan(spec(), use={"mlp": "normed_mlp", **FUSED}, registry=normed)
    found = chosen(made)
    assert found["layers.0.mlp"] == ("mlp", "normed_mlp")
    assert found["layers.0.pre_mlp_layernorm"] == ("norm", "normed_mlp")
    assert found["layers.0.mlp.linear_fc1"] == ("column_linear", "torch_linear")
    assert found["layers.0.input_layernorm"] == ("norm", "torch_norm_linear")
    model, reference = transom.build(made, seed=0), shaken(transom.build(spec(), seed=0))
    assert model.state_dict().keys() == reference.state_dict().keys()
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model(TOKENS), reference(TOKENS))
    found = totals(made, measure(made)).cost.parameters
    assert found == sum(parameter.numel() for parameter in reference.parameters())


def test_mlp_that_brings_its_norm_is_refused_where_none_is(normed):
    config = {"pre_layernorm": False, "post_mlp_layernorm": True, "post_attention_layernorm": True}
    made = transom.plan(spec(config), use={"mlp": "normed_mlp | mlp"}, registry=normed)
    node = next(node for node in made.nodes() if node.path == "layers.0.mlp")
    assert node.resolution.chosen.name == "mlp"
    (refused,) = node.resolution.refused
    assert (refused.stage, refused.reason) == (
        "features",
        "it brings a norm along, and none stands before this place that feeds it alone",
    )
