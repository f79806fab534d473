"""The hook, the adapters and what becomes of them."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import nn
from transom.checkpoint.module_layout import from_canonical, own_tensors, to_canonical
from transom.errors import HookError, InputError, SpecError
from transom.training.run import train
from transom_lora.hook import LoraOptions
from transom_lora.linear import LoraLinear
from transom_lora.merge import adapter_state, merge, unmerge

SPEC = Path(__file__).parents[1] / "tiny-lora.yaml"
TOKENS = torch.arange(12).view(2, 6)
FUSED = {"norm_linear": "torch_norm_linear"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(hooked: bool = True, config: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    plain = {
        "num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4,
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    data: dict[str, Any] = {"vocab_size": 32, "max_sequence_length": 16, "config": plain | (config or {})}
    return data | ({"hooks": [{"hook": "lora", "options": {"rank": 3} | options}]} if hooked else {})


def build(*, learned: bool = True, dtype: str = "float64", **options: Any) -> Any:
    model = transom.build(spec(**options), dtype=dtype)
    if learned:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.5)
    return model


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


def test_adapter_equals_its_formula() -> None:
    (path, adapter), *_ = adapters(build(alpha=5.0)).items()
    assert path == "layers.0.self_attention.linear_qkv"
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    out, _ = adapter(x)
    weight = adapter.linear.weight + adapter.lora_b @ adapter.lora_a * 5.0 / 3
    exact = x @ weight.T + adapter.linear.bias
    torch.testing.assert_close(out, exact)
    leaves = [x, adapter.lora_a, adapter.lora_b]
    found, wanted = (torch.autograd.grad(each.square().sum(), leaves) for each in (out, exact))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_adapter_hands_the_bias_on_where_it_is_not_added() -> None:
    adapter = adapters(build())["layers.0.mlp.linear_fc1"]
    assert adapter(torch.randn(1, 2, 16, dtype=torch.float64))[1] is adapter.linear.bias


def test_adapter_drops_in_training_alone() -> None:
    model = build(dropout=0.5).train()
    assert not torch.equal(model(TOKENS), model(TOKENS))
    assert torch.equal(model.eval()(TOKENS), model(TOKENS))


def test_alpha_is_twice_the_rank_unless_it_is_given() -> None:
    assert {adapter.scale for adapter in adapters(build()).values()} == {2.0}


def test_model_starts_as_it_is_without() -> None:
    plain, model = transom.build(spec(hooked=False)).eval(), build(learned=False, dtype="float32").eval()
    assert model.load_state_dict(plain.state_dict()) == ([], [])
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_state_has_the_names_of_a_model_without_and_the_adapters() -> None:
    names = set(transom.build(spec(hooked=False)).state_dict())
    state = build().state_dict()
    extra = {f"{path}.{name}" for path in adapters(build()) for name in ("lora_a", "lora_b")}
    assert set(state) == names | extra


def test_state_goes_from_model_to_model() -> None:
    one, other = build(), build()
    assert other.load_state_dict(one.state_dict()) == ([], [])
    assert torch.equal(other(TOKENS), one(TOKENS))


def test_state_of_which_an_adapter_is_missing_does_not_load() -> None:
    state = build().state_dict()
    del state["layers.0.mlp.linear_fc1.lora_a"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.0\.mlp\.linear_fc1\.lora_a"):
        build().load_state_dict(state)


def test_tensors_have_canonical_names_in_checkpoints() -> None:
    model = build()
    tensors = to_canonical(model, own_tensors(model))
    assert set(tensors) == set(model.state_dict())
    back = from_canonical(model, tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in own_tensors(model).items())


def test_adapters_alone_learn() -> None:
    model = build()
    model(TOKENS).square().mean().backward()
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {f"{path}.{name}" for path in adapters(model) for name in ("lora_a", "lora_b")}
    assert all(weight.grad is not None for name, weight in model.named_parameters() if name in learning)


def test_everything_learns_when_nothing_is_frozen() -> None:
    assert all(weight.requires_grad for weight in build(freeze=False).parameters())


def test_nothing_learns_in_inference() -> None:
    assert not any(weight.requires_grad for weight in transom.build(spec(), mode="infer").parameters())


def test_only_the_first_matrix_is_drawn() -> None:
    for adapter in adapters(build(learned=False)).values():
        assert torch.count_nonzero(adapter.lora_b) == 0
        bound = 1 / math.sqrt(adapter.lora_a.shape[1])
        assert 0.5 * bound < adapter.lora_a.abs().max() <= bound


TARGETS = {
    "layers.*.mlp.*": 4,
    "layers.1.**": 4,
    "**.linear_fc?": 0,
    "**.linear_fc1": 2,
    "**.linear_*": 8,
    "layers.0.self_attention.linear_qkv": 1,
    "layers.*.self_attention.linear_*": 4,
}


@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_patterns_of_paths(target: str) -> None:
    if TARGETS[target] == 0:
        with pytest.raises(HookError, match="no linear of the model has a path that fits lora's targets") as caught:
            build(targets=[target])
        assert caught.value.hook == "transom-lora/lora"
        return
    found = adapters(build(targets=[target]))
    assert len(found) == TARGETS[target]


def test_the_output_layer_is_refused() -> None:
    with pytest.raises(HookError, match="cannot put an adapter on output_layer: the loss reads its weight"):
        build(targets=["**.output_layer"])


def test_split_weights_are_refused() -> None:
    data = spec(config={"tensor_model_parallel_size": 2}) | {
        "use": {"linear": "parallel_linear", "embedding": "parallel_linear", "loss": "parallel_linear"}
    }
    with pytest.raises(HookError, match="on whole weights, and tensor_model_parallel_size is 2") as caught:
        transom.plan(data)
    assert caught.value.hint == "train the adapters with data parallelism"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "rank is 0; at least 1 is needed"),
        ({"dropout": 1.0}, "dropout is 1.0; a probability below 1 is needed"),
        ({"ranc": 2}, "ranc"),
        ({"targets": "**"}, "targets"),
    ],
)
def test_wrong_options_are_told_with_their_place(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        transom.plan(spec(**options))
    assert caught.value.path.startswith("hooks.0.options")


def test_plan_says_what_was_replaced() -> None:
    model = build(targets=["layers.0.mlp.linear_fc1"])
    replaced = {
        node.path: [each.hook for each in node.replacements] for node in model.plan.nodes() if node.replacements
    }
    assert replaced == {"layers.0.mlp.linear_fc1": ["transom-lora/lora"]}


def test_adapter_state_is_what_was_learned_by_itself() -> None:
    one, other = build(), build()
    few = adapter_state(one)
    assert few.keys() == one.state_dict().keys() - transom.build(spec(hooked=False)).state_dict().keys()
    rest = {name: tensor for name, tensor in one.state_dict().items() if name not in few}
    other.load_state_dict(rest)
    missing, unexpected = other.load_state_dict(few, strict=False)
    assert unexpected == []
    assert len(missing) == len(rest)
    assert torch.equal(other(TOKENS), one(TOKENS))
    assert adapter_state(next(iter(adapters(one).values()))).keys() == {"lora_a", "lora_b"}


def test_merged_model_is_a_plain_one_that_computes_the_same() -> None:
    model = build()
    wanted = model(TOKENS)
    found = merge(model)
    assert not adapters(model)
    assert len(found) == 8
    plain = transom.build(spec(hooked=False), dtype="float64")
    assert plain.load_state_dict(model.state_dict()) == ([], [])
    torch.testing.assert_close(plain.eval()(TOKENS), wanted)


def test_unmerged_model_is_what_it_was() -> None:
    model = build()
    before, wanted = copy.deepcopy(model.state_dict()), model(TOKENS)
    unmerge(model, merge(model))
    assert len(adapters(model)) == 8
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-14, rtol=0)
    torch.testing.assert_close(model(TOKENS), wanted)


def test_unmerge_refuses_another_model_and_a_second_time() -> None:
    model, other = build(), build()
    found = merge(model)
    with pytest.raises(InputError, match="is not the linear into which an adapter was merged"):
        unmerge(other, found)
    unmerge(model, found)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="is not the linear into which an adapter was merged"):
        unmerge(model, found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merge_refuses_what_has_nothing_to_merge() -> None:
    with pytest.raises(InputError, match="the model has no adapters to merge"):
        merge(transom.build(spec(hooked=False)))
    with pytest.raises(InputError, match="an adapter by itself cannot be merged"):
        merge(next(iter(adapters(build()).values())))


def test_model_survives_copies_and_compiles_in_one_graph() -> None:
    model = build()
    wanted = model(TOKENS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(TOKENS), wanted)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS), wanted)


def test_model_is_built_on_meta_and_filled() -> None:
    model, blank = build(), transom.build(spec(), device="meta", dtype="float64")
    blank.to_empty(device="cpu")
    blank.load_state_dict(model.state_dict())
    torch.testing.assert_close(blank(TOKENS), model(TOKENS))


def test_adapter_puts_the_linears_gradient_off_when_asked() -> None:
    model = build(config={"delay_wgrad_compute": True}, freeze=False)
    adapter = adapters(model)["layers.0.mlp.linear_fc2"]
    adapter(torch.randn(2, 24, dtype=torch.float64))[0].square().sum().backward()
    assert adapter.linear.weight.grad is None
    adapter.backward_dw()
    assert adapter.linear.weight.grad is not None


def test_options_have_the_published_defaults() -> None:
    assert LoraOptions().rank == 8
    assert LoraOptions().dropout == 0


def test_adapters_of_a_smaller_model_of_the_spec_learn_and_a_run_goes_on(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    assert transom.load_spec(SPEC).config == transom.load_spec("tiny-llama").config.replace(
        embedding_init_method_std=0.2
    )
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 40, "batch_size": 8, "warmup_steps": 5, "checkpoint_every": 20}
    whole = train(data, out=tmp_path / "whole")
    assert whole.validation_loss < 0.8 * math.log(256)
    train(data, out=tmp_path / "parts", steps=20)
    resumed = train(data, out=tmp_path / "parts", steps=40, resume=True)
    assert resumed.parameters == whole.parameters


def test_adapter_reads_what_a_linear_that_norms_multiplies() -> None:
    apart, fused = (transom.build(spec() | {"use": use}, dtype="float64") for use in ({}, FUSED))
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.normal_(std=0.3)
    assert apart.state_dict().keys() == fused.state_dict().keys()
    fused.load_state_dict(apart.state_dict())
    assert adapters(fused).keys() == adapters(apart).keys()
    torch.testing.assert_close(fused(TOKENS), apart(TOKENS))
    for model in (fused, apart):
        model(TOKENS).square().mean().backward()
    path = "layers.0.self_attention.linear_qkv.lora_a"
    torch.testing.assert_close(fused.get_parameter(path).grad, apart.get_parameter(path).grad)
    merge(fused)
    torch.testing.assert_close(fused(TOKENS), apart(TOKENS))
