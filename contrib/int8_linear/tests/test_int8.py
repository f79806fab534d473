"""The hook, and the linears that it rounds."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import nn
from transom.errors import HookError
from transom.training.run import train
from transom_int8_linear.linear import Int8Linear, quantized

SPEC = Path(__file__).parents[1] / "tiny-int8.yaml"
TOKENS = torch.arange(12).view(2, 6)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(hooked: bool = True, config: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    plain = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
    data: dict[str, Any] = {"vocab_size": 32, "max_sequence_length": 16, "config": plain | (config or {})}
    return data | ({"hooks": [{"hook": "int8_linear", "options": options}]} if hooked else {})


def trained(dtype: str = "float32") -> Any:
    """A model whose weights and biases are not those of the start."""
    model = transom.build(spec(hooked=False), mode="infer", dtype=dtype)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def rounded(dtype: str = "float32", **options: Any) -> Any:
    return transom.build(spec(**options), mode="infer", dtype=dtype)


def linears(model: nn.Module) -> dict[str, Int8Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Int8Linear)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_quantized_weight_is_the_weight_to_half_a_scale(dtype: torch.dtype) -> None:
    weight = (torch.randn(6, 40) * torch.logspace(-3, 2, 6)[:, None]).to(dtype)
    integers, scale = quantized(weight)
    assert (integers.dtype, scale.dtype) == (torch.int8, dtype)
    assert integers.abs().amax(dim=1).tolist() == [127] * 6
    off = (integers.double() * scale.double()[:, None] - weight.double()).abs()
    # The greatest of a row may be cut by what its scale was rounded by.
    slack = 127 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-4
    assert bool((off <= (0.5 + slack) * scale.double()[:, None]).all())


def test_quantized_row_of_zeros_stays_zeros() -> None:
    integers, scale = quantized(torch.tensor([[0.0, 0.0], [1.0, -0.5]]))
    assert integers.tolist() == [[0, 0], [127, -64]]
    assert scale.tolist()[0] == 0


def test_linear_computes_with_the_rounded_weight() -> None:
    model, other = trained("float64"), rounded("float64")
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    for path in ("layers.0.self_attention.linear_qkv", "layers.1.mlp.linear_fc1"):
        linear, made = model.get_submodule(path), other.get_submodule(path)
        integers, scale = quantized(linear.weight)
        exact = x @ (integers.double() * scale[:, None]).T
        out, bias = made(x)
        if linear.skip_bias_add:
            assert torch.equal(bias, linear.bias)
        else:
            exact = exact + linear.bias
            assert bias is None
        torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_is_near_what_it_was(dtype: str) -> None:
    model, other = trained(dtype), rounded(dtype)
    assert other.load_state_dict(model.state_dict()) == ([], [])
    wanted, found = model(TOKENS), other(TOKENS)
    assert (found - wanted).norm() / wanted.norm() < 0.05
    assert not torch.equal(found, wanted)


def test_states_of_its_own_load_bit_for_bit() -> None:
    one, other = rounded(), rounded()
    one.load_state_dict(trained().state_dict())
    assert other.load_state_dict(one.state_dict()) == ([], [])
    assert torch.equal(other(TOKENS), one(TOKENS))
    assert "layers.0.mlp.linear_fc1.weight" not in one.state_dict()


def test_weights_take_a_quarter_of_the_memory() -> None:
    model, other = trained(), rounded()
    for path, made in linears(other).items():
        before = model.get_submodule(path).weight
        after = made.weight_int8.nbytes + made.weight_scale.nbytes
        assert after == before.nbytes // 4 + 4 * len(before)
    assert len(linears(other)) == 8


def test_targets_are_patterns_of_paths() -> None:
    assert list(linears(rounded(targets=["layers.1.mlp.*"]))) == ["layers.1.mlp.linear_fc1", "layers.1.mlp.linear_fc2"]
    assert len(linears(rounded(targets=["layers.0.**"]))) == 4


def test_model_decodes_over_a_cache_as_it_reads_the_whole() -> None:
    model = rounded("float64")
    whole = model(TOKENS)
    model.setup_caches(2)
    steps = [model(TOKENS[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


# torch's tracer makes an instance where no gradient is asked for, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_model_survives_copies_and_compiles_in_one_graph() -> None:
    model = rounded()
    wanted = model(TOKENS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(TOKENS), wanted)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS), wanted)


def test_model_is_built_on_meta_and_filled() -> None:
    blank = transom.build(spec(), mode="infer", device="meta").to_empty(device="cpu")
    model = rounded()
    blank.load_state_dict(model.state_dict())
    assert torch.equal(blank(TOKENS), model(TOKENS))


REFUSED = {
    "training": (
        {},
        {},
        "train",
        "int8_linear rounds weights, which then cannot learn, and the model is to be trained.",
    ),
    "output layer": (
        {"targets": ["output_layer"]},
        {},
        "infer",
        "int8_linear cannot round output_layer: its weight is read without calling it.",
    ),
    "nothing": (
        {"targets": ["**.linear_fc9"]},
        {},
        "infer",
        "no linear of the model has a path that fits int8_linear's targets, **.linear_fc9.",
    ),
    "split": (
        {},
        {"tensor_model_parallel_size": 2},
        "infer",
        "int8_linear rounds whole weights, and tensor_model_parallel_size is 2.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rounded_is_refused(name: str) -> None:
    options, config, mode, what = REFUSED[name]
    use = dict.fromkeys(("linear", "embedding", "loss"), "parallel_linear") if config else {}
    with pytest.raises(HookError) as caught:
        transom.build(spec(config=config, **options) | {"use": use}, mode=mode, device="meta")
    assert (caught.value.what, caught.value.hook) == (what, "transom-int8-linear/int8_linear")


def test_gradient_goes_through_the_rounded_weight() -> None:
    made = rounded("float64", training=True).get_submodule("layers.0.mlp.linear_fc2")
    x = torch.randn(3, 48, dtype=torch.float64, requires_grad=True)
    out, _ = made(x)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad((x @ made.weight.T + made.bias).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_backward_keeps_no_floating_weight() -> None:
    made = rounded(training=True).get_submodule("layers.0.mlp.linear_fc2")
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        made(torch.randn(3, 48, requires_grad=True))
    assert [tensor.dtype for tensor in kept if tensor.shape == (32, 48)] == [torch.int8]


def test_integers_stay_while_the_rest_learns() -> None:
    model = transom.build(spec(training=True), dtype="float64")
    before = {path: made.weight_int8.clone() for path, made in linears(model).items()}
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning.isdisjoint({f"{path}.bias" for path in before})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model(TOKENS[:, :-1], labels=TOKENS[:, 1:]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(made.weight_int8, before[path]) for path, made in linears(model).items())


def test_adapters_learn_over_integers() -> None:
    pytest.importorskip("transom_lora")
    hooks = [*spec(training=True)["hooks"], {"hook": "lora", "options": {"rank": 2}}]
    model = transom.build(spec() | {"hooks": hooks})
    model(TOKENS[:, :-1], labels=TOKENS[:, 1:]).mean().backward()
    learned = {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {"lora_a", "lora_b"}
    assert len(linears(model)) == 8


def test_spec_is_tiny_llama_and_trains(tmp_path: Path) -> None:
    assert transom.load_spec(SPEC).config == transom.load_spec("tiny-llama").config
    assert len(linears(transom.build(SPEC, mode="infer"))) == 16
    result = train(SPEC, out=tmp_path / "run", steps=2)
    assert result.loss is not None
    assert result.parameters == 256 * 192 + 9 * 192  # the embedding and the norms


def test_a_linear_that_norms_its_input_is_refused() -> None:
    use = {"norm_linear": "torch_norm_linear"}
    with pytest.raises(HookError) as caught:
        transom.build(transom.load_spec("tiny-llama").to_dict() | {"hooks": ["int8_linear"], "use": use}, mode="infer")
    assert caught.value.what == (
        "int8_linear cannot round layers.0.self_attention.linear_qkv: torch_norm_linear norms and multiplies in one."
    )
    assert caught.value.hint == "use: {layers.0.self_attention.linear_qkv: separate}, or norm_linear: separate"
    assert caught.value.hook == "transom-int8-linear/int8_linear"
