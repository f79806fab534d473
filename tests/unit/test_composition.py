"""The composition point: a plan becomes modules, and a part that is not built as planned is found."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest
import torch
import transom
from torch import nn
from transom.errors import BuildError, ParallelError, ResolutionError, SpecError
from transom.specs.load import recipe_names
from transom.specs.plan import plan


@pytest.fixture
def made(fakes, make_spec):
    return plan(make_spec(), registry=fakes)


def test_build_makes_every_part_of_a_plan(made):
    model = transom.build(made, seed=0)
    assert {
        type(module).__module__ for name, module in model.named_modules() if name.endswith(("mlp", "up", "down"))
    } == {"acme_fakes.parts"}
    paths = {name for name, _ in model.named_modules()}
    assert {node.path for node in made.nodes()} <= paths
    assert model.plan is made
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 16)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("tiny-")])
def test_build_of_a_recipe_has_a_module_at_every_path(name):
    model = transom.build(name, mode="infer", device="meta")
    model.setup_caches(1)  # the cache's place is filled when it is needed
    modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
    assert {node.path for node in model.plan.nodes()} <= modules


def test_build_takes_a_spec_with_everything_that_a_plan_takes():
    model = transom.build(
        "tiny-llama", device="meta", dtype="bfloat16", mode="infer", use={"core_attention": "dot_product"}
    )
    parameter = next(model.parameters())
    assert (parameter.device.type, parameter.dtype, parameter.requires_grad) == ("meta", torch.bfloat16, False)
    assert not model.training
    assert {n.resolution.chosen.name for n in model.plan.nodes() if n.slot == "core_attention"} == {"dot_product"}


def test_build_trains_unless_told_otherwise(made):
    model = transom.build(made)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_build_with_a_seed_draws_the_same_weights_and_leaves_the_generator_alone(made):
    state = torch.get_rng_state()
    one, two, other = (transom.build(made, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.mlp.up.inner.weight"], other["layers.0.mlp.up.inner.weight"])


def test_build_without_a_seed_draws_from_the_global_generator(made):
    state = torch.get_rng_state()
    transom.build(made)
    assert not torch.equal(torch.get_rng_state(), state)


def test_build_hands_options_to_the_builder_that_has_them(fakes, make_spec):
    model = transom.build(plan(make_spec(options={"layers.1.mlp": {"times": 7}}), registry=fakes))
    assert [getattr(layer.mlp.options, "times", None) for layer in model.layers] == [None, 7, None]


@pytest.mark.parametrize("given", [{"dtype": "float32"}, {"mode": "infer"}, {"use": {}}, {"options": {}}])
def test_build_of_a_plan_refuses_what_the_plan_decided(made, given):
    (name,) = given
    with pytest.raises(SpecError) as caught:
        transom.build(made, **given)
    assert caught.value.what == f"{name} is given together with a plan, in which it is already decided."
    assert (caught.value.path, caught.value.hint) == (name, f"transom.plan(spec, {name}=...), then build that plan")


@pytest.mark.parametrize("reason", [AssertionError("no CUDA here"), RuntimeError("no CUDA here.\nlong story")])
def test_build_refuses_a_device_that_is_not_there(made, monkeypatch, reason):
    def refuse(*args, **kwargs):
        raise reason

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(SpecError) as caught:
        transom.build(made, device="cuda")
    error = caught.value
    assert (error.what, error.path) == ("device 'cuda' cannot be used here: no CUDA here.", "device")
    assert error.hint.startswith("cpu, or meta ")
    assert error.__cause__ is reason


def test_build_shares_the_modules_of_a_shared_slot():
    model = transom.build("tiny-llama", device="meta")
    assert model.layers[0].self_attention.rotary is model.layers[3].self_attention.rotary
    assert model.layers[0].self_attention.core_attention is not model.layers[3].self_attention.core_attention


def test_build_says_which_part_failed(fakes, make_spec, made):
    def broken(self, *args, **kwargs):
        raise ZeroDivisionError("no heads")

    fakes.get("mlp", "fake_mlp").load().__init__ = broken
    with pytest.raises(ZeroDivisionError, match="no heads") as caught:
        transom.build(made)
    assert caught.value.__notes__[0] == "while building layers.0.mlp, mlp fake_mlp (acme-fakes 1.0)"
    assert caught.value.__notes__[-1] == "while building the model, model fake_model (acme-fakes 1.0)"


def test_build_refuses_what_is_no_module(fakes, make_spec):
    with fakes.override("norm", "nothing", lambda config, hidden_size, eps: None):
        made = plan(make_spec(use={"norm": "nothing"}), registry=fakes)
        with pytest.raises(BuildError) as caught:
            transom.build(made)
    error = caught.value
    assert error.what == ("layers.0.input_layernorm, norm nothing (registered) gave a NoneType, not a torch.nn.Module.")
    assert (error.path, error.hint) == ("layers.0.input_layernorm", "report it to the plugin's authors")


def test_build_refuses_a_parent_that_builds_other_than_it_planned(fakes, make_spec):
    class Other(fakes.get("mlp", "fake_mlp").load()):
        def __init__(self, config, submodules, *args, **kwargs):
            nn.Module.__init__(self)
            submodules.up(config.hidden_size, 99, config=config, init_method=None, bias=True)

    with fakes.override("mlp", "other", Other):
        made = plan(make_spec(use={"layers.1.mlp": "other"}), registry=fakes)
        with pytest.raises(BuildError) as caught:
            transom.build(made)
    error = caught.value
    assert error.what == "layers.1.mlp.up was planned with output_size=12 and is being built with 99."
    assert (error.path, error.hint) == (
        "layers.1.mlp.up",
        "the implementation above it must ask in parts() for what it builds",
    )


def test_build_gives_an_architecture_without_parts_its_empty_submodules(fakes, make_spec):
    @dataclass(frozen=True)
    class Nothing:
        pass

    class Bare(nn.Module):
        Submodules = Nothing

        def __init__(self, config, submodules, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
            super().__init__()
            self.given = submodules

        def forward(self, hidden_states, per_token_scale=None):
            return hidden_states, None

    class Barer(Bare):
        Submodules = None

    for builder, given in ((Bare, Nothing()), (Barer, None)):
        with fakes.override("mlp", "bare", builder):
            spec = make_spec(use={"mlp": "bare"})
            del spec["use"]["linear"]
            model = transom.build(plan(spec, registry=fakes))
        assert model.layers[0].mlp.given == given


def test_model_pickles_with_its_plan():
    model = transom.build("tiny-llama", seed=0)
    again = pickle.loads(pickle.dumps(model))
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(tokens), model(tokens))
    assert again.plan == model.plan


SHARED = {
    "vocab_size": 16,
    "max_sequence_length": 8,
    "config": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "context_parallel_size": 2},
}


def test_build_refuses_to_share_sequences_without_ranks_to_share_them():
    with pytest.raises(ParallelError, match="sequences are split over 2 ranks, and no cp_group was given") as caught:
        transom.build(SHARED)
    assert caught.value.asked_by == "config.context_parallel_size"
    assert (caught.value.ranks, caught.value.wanted) == (1, 2)


@pytest.mark.parametrize(
    ("use", "slot"),
    [({"core_attention": "torch_flex"}, "core_attention"), ({"self_attention": "delta_attention"}, "self_attention")],
)
def test_plan_refuses_who_does_not_declare_shares_of_sequences(use, slot):
    assert plan(SHARED).config.context_parallel_size == 2
    with pytest.raises(ResolutionError, match="its card does not declare context_parallel") as caught:
        plan(SHARED, use=use)
    assert caught.value.slot == slot


def test_build_makes_few_calls_beside_the_modules():
    made = plan("tiny-llama")
    transom.build(made, device="meta")
    called: Counter[CodeType] = Counter()
    sys.setprofile(lambda frame, event, _: called.update([frame.f_code] if event == "call" else ()))
    try:
        transom.build(made, device="meta")
    finally:
        sys.setprofile(None)
    nodes = sum(1 for _ in made.nodes())
    own = sum(n for code, n in called.items() if Path(code.co_filename).name in ("composition.py", "module_layout.py"))
    # A builder is made and called: it compares, makes, keeps states canonical, and asks hooks and the ranks.
    assert own <= 10 * nodes
    # No module is asked whether it satisfies a Protocol, and no arguments are bound to a signature.
    assert not {"_ProtocolMeta.__instancecheck__", "Signature._bind"} & {code.co_qualname for code in called}
