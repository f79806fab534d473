"""Plans: who fills each place, by which entry, and what is wrong with a spec that cannot be planned."""

from __future__ import annotations

import inspect
import json
import pickle
from dataclasses import make_dataclass

import pytest
import torch
from transom.errors import (
    BuildError,
    ConfigError,
    PluginImportError,
    ResolutionError,
    SpecError,
    UnknownImplementationError,
    UnknownSlotError,
)
from transom.slots import SLOTS, Slot
from transom.specs.load import load_spec
from transom.specs.plan import plan
from transom.specs.spec import ModelSpec
from transom.transformer.parts import column_linear, row_linear

PLACES = {
    "": "model",
    "embedding.word_embeddings": "embedding",
    **{f"layers.{i}": "layer" for i in range(3)},
    **{f"layers.{i}.input_layernorm": "norm" for i in range(3)},
    **{f"layers.{i}.mlp": "mlp" for i in range(3)},
    **{f"layers.{i}.mlp.up": "column_linear" for i in range(3)},
    **{f"layers.{i}.mlp.down": "row_linear" for i in range(3)},
}


def by_path(made):
    return {node.path: node for node in made.nodes()}


def test_plan_has_a_node_for_every_place(fakes, make_spec):
    made = plan(make_spec(), registry=fakes)
    assert {node.path: node.slot for node in made.nodes()} == PLACES
    assert all(node.resolution.chosen.distribution == "acme-fakes" for node in made.nodes())
    assert by_path(made)["layers.1.mlp.up"].request.output_size == 12


def test_plan_names_the_entry_that_asked(fakes, make_spec):
    made = by_path(plan(make_spec(), registry=fakes, use={"layers.1.mlp": "acme-fakes/fake_mlp"}))
    assert made[""].asked_by == "model in the mapping"
    assert made["layers.0.mlp"].asked_by == "use.mlp in the mapping"
    assert made["layers.0.mlp.up"].asked_by == "use.linear in the mapping"
    assert made["layers.1.mlp"].asked_by == "use.layers.1.mlp in the call's arguments"


def test_plan_takes_the_slots_default_where_nobody_is_named(fakes, make_spec):
    with fakes.override("norm", "torch_norm", fakes.get("norm", "fake_norm").load()):
        spec = make_spec()
        del spec["use"]["norm"]
        node = by_path(plan(spec, registry=fakes))["layers.0.input_layernorm"]
    assert (node.asked_by, node.resolution.chosen.ref) == ("the default of slot norm", "registered/torch_norm")


def test_plan_keeps_refusals_of_a_chain(fakes, make_spec):
    made = by_path(plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}), registry=fakes))
    first, second = made["layers.0.mlp"].resolution, made["layers.1.mlp"].resolution
    assert (first.chosen.name, second.chosen.name) == ("fake_mlp", "even_mlp")
    assert [(v.ref, v.stage, v.reason) for v in first.refused] == [
        ("acme-fakes/even_mlp", "supports", "layer 1 is odd")
    ]
    assert second.refused == ()


def test_plan_gives_options_their_type(fakes, make_spec):
    made = by_path(plan(make_spec(), registry=fakes, options={"layers.2.mlp": {"times": 5}}))
    assert made["layers.2.mlp"].options.times == 5
    assert made["layers.1.mlp"].options is None


def test_plan_gives_options_to_the_implementation_that_they_name(fakes, make_spec):
    use, options = {"mlp": "absent | fake_mlp"}, {"mlp/absent": {"times": 7}, "layers.1.mlp/fake_mlp": {"times": 5}}
    made = by_path(plan(make_spec(), registry=fakes, use=use, options=options))
    assert (made["layers.1.mlp"].options.times, made["layers.0.mlp"].options) == (5, None)


def test_plan_says_what_an_implementation_says_of_how_it_serves(fakes, make_spec):
    found = plan(make_spec(), registry=fakes, options={"layers.2.mlp": {"times": 5}})
    made = by_path(found)
    assert (made["layers.2.mlp"].note, made["layers.1.mlp"].note) == ("5 passes in layer 3", "")
    assert made["layers.2.mlp"].to_dict()["note"] == "5 passes in layer 3"
    (line,) = [line for line in str(found).splitlines() if "serves by" in line]
    assert line.split()[-6:] == ["by", "5", "passes", "in", "layer", "3"]


@pytest.mark.parametrize(
    ("options", "path", "what"),
    [
        ({"mlp": {"times": "5"}}, "options.mlp.times", "options.mlp.times: expected `int`, got `str`."),
        ({"mlp": {"tims": 5}}, "options.mlp.tims", "no field is named 'tims' in options.mlp."),
    ],
)
def test_plan_refuses_a_wrong_option_with_its_path(fakes, make_spec, options, path, what):
    with pytest.raises(SpecError) as caught:
        plan(make_spec(options=options), registry=fakes)
    assert caught.value.path == path
    assert caught.value.what == f"options of acme-fakes/fake_mlp: {what}"
    assert caught.value.asked_by == "options.mlp in the mapping"


def test_plan_refuses_options_of_what_takes_none(fakes, make_spec):
    with pytest.raises(SpecError) as caught:
        plan(make_spec(options={"layers.0": {"times": 5}}), registry=fakes)
    assert (caught.value.path, caught.value.what) == ("options.layers.0", "acme-fakes/fake_layer takes no options.")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (type("Options", (), {}), "Options is neither a dataclass nor a msgspec.Struct."),
        (make_dataclass("Options", [("times", dict[str, int] | dict[str, str])]), "Type unions may not contain more"),
    ],
    ids=["plain class", "untold union"],
)
def test_plan_blames_an_implementation_whose_options_cannot_be_made_of_data(fakes, make_spec, options, why):
    fakes.get("mlp", "fake_mlp").load().Options = options
    with pytest.raises(PluginImportError) as caught:
        plan(make_spec(options={"mlp": {}}), registry=fakes)
    assert caught.value.what.startswith(f"the options of acme-fakes/fake_mlp cannot be read: {why}")
    assert (caught.value.slot, caught.value.name) == ("mlp", "acme-fakes/fake_mlp")
    assert caught.value.asked_by == "options.mlp in the mapping"


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"use": {"layers.7.mlp": "fake_mlp"}}, SpecError, "nothing is at 'layers.7.mlp'"),
        ({"use": {"nrom": "fake_norm"}}, UnknownSlotError, "no slot is named 'nrom'"),
        ({"use": {"norm": "fake_nrm"}}, UnknownImplementationError, "no norm is named 'fake_nrm'"),
        ({"use": {"mlp": "even_mlp"}}, ResolutionError, "mlp 'even_mlp' cannot serve"),
        ({"use": {"mlp": []}}, SpecError, "no name in"),
        ({"use": {"mlp": "a b"}}, SpecError, "'a b' is not an implementation's name"),
        ({"model": []}, SpecError, "no name in"),
        ({"model": "nobody"}, UnknownImplementationError, "no model is named 'nobody'"),
        ({"options": {"activation": {}}}, SpecError, "no part of the model is in slot 'activation'"),
    ],
)
def test_plan_refuses_a_spec_that_cannot_be_planned(fakes, make_spec, changes, error, text):
    with pytest.raises(error, match=text) as caught:
        plan(make_spec(**changes), registry=fakes)
    assert "in the mapping" in caught.value.asked_by


def test_plan_refuses_an_architecture_with_parts_that_it_cannot_receive(fakes, make_spec, monkeypatch):
    mlp = fakes.get("mlp", "fake_mlp").load()
    monkeypatch.delattr(mlp, "Submodules")
    with pytest.raises(ResolutionError, match="mlp 'fake_mlp' cannot serve") as caught:
        plan(make_spec(), registry=fakes)
    (failed,) = caught.value.failed
    assert "its builder has `parts` but no dataclass `Submodules` to receive them" in failed


def test_plan_refuses_parts_for_which_the_submodules_have_no_field(fakes, make_spec, monkeypatch):
    mlp = fakes.get("mlp", "fake_mlp").load()
    monkeypatch.setattr(mlp, "Submodules", fakes.get("layer", "fake_layer").load().Submodules)
    with pytest.raises(BuildError) as caught:
        plan(make_spec(), registry=fakes)
    assert caught.value.what == (
        "layers.0.mlp, mlp fake_mlp (acme-fakes 1.0): `parts` asks for up, down, for which its `Submodules` has no "
        "field."
    )
    assert (caught.value.path, caught.value.hint) == ("layers.0.mlp", "report it to the authors of acme-fakes")


def test_plan_asks_for_parts_with_the_options_that_the_place_has(fakes, make_spec, monkeypatch):
    def parts(cls, request, options=None):
        width = 16 * (1 if options is None else options.times)
        return {"up": column_linear(request, 8, width, bias=True), "down": row_linear(request, width, 8, bias=True)}

    monkeypatch.setattr(fakes.get("mlp", "fake_mlp").load(), "parts", classmethod(parts))
    made = by_path(plan(make_spec(), registry=fakes, options={"layers.1.mlp": {"times": 3}}))
    widths = [made[f"layers.{number}.mlp.up"].request.output_size for number in (0, 1)]
    assert widths == [16, 48]


def test_plan_says_whose_parts_raised(fakes, make_spec, monkeypatch):
    mlp = fakes.get("mlp", "fake_mlp").load()
    monkeypatch.setattr(mlp, "parts", classmethod(lambda cls, request: 1 / 0))
    with pytest.raises(ZeroDivisionError) as caught:
        plan(make_spec(), registry=fakes)
    assert caught.value.__notes__ == ["while asking mlp fake_mlp (acme-fakes 1.0), at layers.0.mlp, for its parts"]


def test_plan_refuses_a_mode_that_there_is_not(fakes, make_spec):
    with pytest.raises(SpecError, match=r"mode is 'trian'\.") as caught:
        plan(make_spec(), mode="trian", registry=fakes)
    assert caught.value.available == ("train", "infer")


def test_plan_needs_a_name_where_a_slot_has_no_default(site, fakes, make_spec, monkeypatch):
    slot = Slot(**{**vars(SLOTS["norm"]), "default": None})
    monkeypatch.setitem(fakes._slots, "norm", slot)
    spec = make_spec()
    del spec["use"]["norm"]
    with pytest.raises(SpecError) as caught:
        plan(spec, registry=fakes)
    error = caught.value
    assert error.what == "the spec names nobody for layers.0.input_layernorm and slot norm has no default."
    assert "acme-fakes/fake_norm" in error.available
    assert (error.path, error.hint) == ("use.norm", "use: {norm: NAME}")


def test_plan_is_for_the_dtype_and_mode_that_are_asked_for(fakes, make_spec):
    made = plan(make_spec(masks=["padding"]), dtype="torch.bfloat16", mode="infer", registry=fakes)
    assert (made.context.dtype, made.config.params_dtype, made.context.mode) == ("bfloat16", "bfloat16", "infer")
    assert made.root.request.masks == {"causal", "padding", "bottom_right", "positions"}
    assert plan(make_spec(), registry=fakes).root.request.masks == {"causal"}


def test_plan_of_a_deterministic_config_asks_for_implementations_that_are():
    recipe = load_spec("tiny-llama").to_dict()
    recipe["config"]["deterministic_mode"] = True
    assert plan(recipe).context.deterministic
    assert plan(recipe).fingerprint != plan("tiny-llama").fingerprint


def test_plan_knows_the_capability_of_a_cuda_device(fakes, make_spec, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert plan(make_spec(), device="cuda:0", registry=fakes).context.compute_capability == (9, 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert plan(make_spec(), device="cuda", registry=fakes).context.compute_capability is None


def test_fingerprint_tells_plans_apart_that_build_other_models(fakes, make_spec):
    one = plan(make_spec(), registry=fakes).fingerprint
    others = [
        plan(make_spec(), registry=fakes, dtype="bfloat16"),
        plan(make_spec(), registry=fakes, mode="infer"),
        plan(make_spec(vocab_size=17), registry=fakes),
        plan(make_spec(config={"init_method_std": 0.5}), registry=fakes),
        plan(make_spec(use={"layers.1.mlp": "even_mlp"}), registry=fakes),
        plan(make_spec(options={"mlp": {"times": 3}}), registry=fakes),
    ]
    assert len({one, *(made.fingerprint for made in others)}) == 7


def test_fingerprint_does_not_depend_on_how_choices_were_asked_for(fakes, make_spec):
    one = plan(make_spec(), registry=fakes)
    other = plan(make_spec(name="other", use={"mlp": ["nobody", "fake_mlp"]}, train={"steps": 3}), registry=fakes)
    assert other.fingerprint == one.fingerprint


def test_fingerprint_names_a_function_of_the_config(fakes, make_spec):
    def with_init(function):
        spec = load_spec(make_spec())
        fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
        return ModelSpec(**fields | {"config": spec.config.replace(init_method=function)})

    def zeros(weight): ...
    def ones(weight): ...

    prints = [plan(with_init(f), registry=fakes).fingerprint for f in (zeros, ones, zeros)]
    assert prints[0] == prints[2] != prints[1]


def test_plan_as_data_has_every_refusal(fakes, make_spec):
    made = plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}, options={"mlp": {"times": 3}}), registry=fakes)
    data = json.loads(json.dumps(made.to_dict()))
    node = next(node for node in data["nodes"] if node["path"] == "layers.0.mlp")
    assert node["asked"] == ["even_mlp", "fake_mlp"]
    assert node["options"] == {"times": 3}
    assert node["refused"] == [
        {"ref": "acme-fakes/even_mlp", "stage": "supports", "reason": "layer 1 is odd", "hint": None}
    ]
    assert (data["name"], data["fingerprint"], len(data["nodes"])) == ("fake", made.fingerprint, len(PLACES))


def test_plan_pickles(fakes, make_spec):
    made = plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}, options={"mlp": {"times": 3}}), registry=fakes)
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert (again.fingerprint, str(again)) == (made.fingerprint, str(made))


@pytest.mark.parametrize(("dtype", "hint"), [("floot32", "float32?"), ("int8", None), (torch.int8, None)], ids=str)
def test_plan_refuses_a_dtype_that_no_parameter_has(fakes, make_spec, dtype, hint):
    with pytest.raises(SpecError) as caught:
        plan(make_spec(), dtype=dtype, registry=fakes)
    error = caught.value
    assert error.what == f"parameters cannot have the dtype {str(dtype).removeprefix('torch.')!r}."
    assert (error.asked_by, error.path, error.hint) == ("dtype (--dtype)", "dtype", hint)
    assert error.available == ("float32", "bfloat16", "float16", "float64")


@pytest.mark.parametrize(
    ("is_here", "cuda"),
    [(True, ("cuda", "cuda:0")), (False, ("cuda (to plan for: none is here)",))],
    ids=["cuda here", "no cuda here"],
)
def test_plan_refuses_a_device_that_there_is_not(fakes, make_spec, monkeypatch, is_here, cuda):
    monkeypatch.setattr("torch.cuda.is_available", lambda: is_here)
    with pytest.raises(SpecError) as caught:
        plan(make_spec(), device="teapot", registry=fakes)
    error = caught.value
    assert (error.what, error.path) == ("no device is called 'teapot'.", "device")
    assert error.available == ("cpu", *cuda, "meta")
    assert "teapot" in str(error.__cause__)


@pytest.mark.parametrize(
    ("given", "what", "hint"),
    [
        (
            {"use": "dot_product"},
            "use is a mapping, not a str: 'dot_product'.",
            'use={"core_attention": "dot_product"}',
        ),
        ({"options": [3]}, "options is a mapping, not a list: [3].", 'options={"SLOT": {"OPTION": VALUE}}'),
    ],
    ids=["use", "options"],
)
def test_plan_refuses_what_is_no_mapping(fakes, make_spec, given, what, hint):
    with pytest.raises(SpecError) as caught:
        plan(make_spec(), registry=fakes, **given)
    (name,) = given
    assert (caught.value.what, caught.value.hint) == (what, hint)
    assert (caught.value.asked_by, caught.value.path) == (name, name)


def test_plan_refuses_a_name_that_is_none(fakes, make_spec):
    with pytest.raises(SpecError, match=r"no name in 3\.") as caught:
        plan(make_spec(), registry=fakes, use={"core_attention": 3})
    assert caught.value.asked_by == "use.core_attention in the call's arguments"


def test_plan_refuses_a_spec_that_is_none():
    with pytest.raises(SpecError) as caught:
        plan(42)
    assert caught.value.what == "a spec is a path, a recipe's name, a mapping or a ModelSpec, not 42."
    assert "tiny-llama" in caught.value.available


def test_plan_refuses_more_layers_than_memory_may_hold(fakes, make_spec):
    with pytest.raises(ConfigError) as caught:
        plan(make_spec(config={"num_layers": 10_001}), registry=fakes)
    error = caught.value
    assert error.what == "num_layers is 10001; at most 10000 layers are planned."
    assert (error.path, error.field, error.value) == ("config.num_layers", "num_layers", 10_001)


def test_plan_reads_no_signature_that_it_has_read_before(monkeypatch):
    first = plan("tiny-llama")
    read = []
    monkeypatch.setattr(inspect, "signature", read.append)
    assert plan("tiny-llama").fingerprint == first.fingerprint
    assert read == []


def test_plan_asks_who_decides_by_the_layer_s_number_for_each_layer(fakes, make_spec, monkeypatch):
    mlp = fakes.get("mlp", "fake_mlp").load()
    plan(make_spec(), registry=fakes)
    asked = []
    monkeypatch.setattr(mlp, "supports", lambda request: asked.append(request.layer_number) or (), raising=False)
    made = by_path(plan(make_spec(), registry=fakes))
    assert asked == [1, 2, 3]
    monkeypatch.setattr(mlp, "supports", lambda request: ["no"] if request.layer_number == 2 else ())
    with pytest.raises(ResolutionError, match="no") as caught:
        plan(make_spec(), registry=fakes)
    assert caught.value.resolution.refused[0].stage == "supports"
    # Whose card alone decides is asked once for all layers.
    assert made["layers.0"].resolution is made["layers.2"].resolution
    assert made["layers.0.mlp"].resolution is not made["layers.2.mlp"].resolution
    assert [made[f"layers.{i}"].request.layer_number for i in range(3)] == [1, 2, 3]
