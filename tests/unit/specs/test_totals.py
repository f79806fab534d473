"""What a plan says it costs, against the model that is really built."""

from __future__ import annotations

import copy

import pytest
import torch
import transom
from torch.utils.flop_counter import FlopCounterMode
from transom.specs.load import load_spec
from transom.specs.plan import plan
from transom.specs.totals import Cost, Memory, costs, item_size, totals

LENGTH = 24
BASE = {
    "vocab_size": 40,
    "max_sequence_length": LENGTH,
    "config": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "hidden_dropout": 0,
        "attention_dropout": 0,
    },
    "use": {"core_attention": "dot_product"},
}
LLAMA = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": "silu",
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "num_query_groups": 2,
    "ffn_hidden_size": 80,
}
VARIANTS = {
    "gpt2": {},
    "tied": {"share_embeddings_and_output_weights": True},
    "llama": {"config": LLAMA},
    "tied llama": {"config": LLAMA, "share_embeddings_and_output_weights": True},
    "qk norm": {"config": LLAMA | {"qk_layernorm": True, "add_qkv_bias": True}},
    "gate": {"config": LLAMA | {"attention_output_gate": True}},
    "sinks": {"config": {"softmax_type": "learnable"}},
    "post norms": {"config": {"post_attention_layernorm": True, "post_mlp_layernorm": True}},
    "no norms": {"config": {"pre_layernorm": False, "post_attention_layernorm": True}},
    "wide heads": {"config": LLAMA | {"kv_channels": 24}},
    "activation": {"config": {"use_te_activation_func": True}},
    "alibi": {"config": {"position_embedding_type": "alibi"}},
}


def spec(changes):
    data = copy.deepcopy(BASE)
    data["config"] |= changes.get("config", {})
    return data | {name: value for name, value in changes.items() if name != "config"}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return transom.build(spec(request.param), mode="infer", device="meta")


def test_parameters_of_every_place_are_those_of_its_module(model):
    found = costs(model.plan)
    model.setup_caches(1)  # the cache's place is filled when it is needed
    modules = dict(model.named_modules(remove_duplicate=False))
    assert {path: cost.parameters for path, cost in found.items()} == {
        path: sum(parameter.numel() for parameter in modules[path].parameters()) for path in found
    }
    assert all(cost.is_complete for cost in found.values())


def test_flops_are_those_that_torch_counts(model):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(3, LENGTH, dtype=torch.long))
    assert totals(model.plan).cost.flops * 3 * LENGTH == counter.get_total_flops()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [{}, LLAMA, LLAMA | {"kv_channels": 24}], ids=["mha", "gqa", "wide heads"])
def test_cache_bytes_are_those_that_a_cache_takes(config, dtype):
    model = transom.build(spec({"config": config}), dtype=dtype, mode="infer")

    def taken(capacity):
        model.setup_caches(3, capacity=capacity)
        return sum(tensor.nbytes for tensor in _tensors(model.cache) if tensor.is_floating_point())

    assert taken(LENGTH) - taken(LENGTH - 5) == 3 * 5 * totals(model.plan).cost.kv_bytes


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from value.buffers()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        for item in vars(value).values():
            yield from _tensors(item)


def test_memory_is_what_a_training_step_leaves_allocated():
    model = transom.build(spec({"config": LLAMA}), seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).mean().backward()
    optimizer.step()
    memory = totals(model.plan).memory
    assert memory.parameters == sum(parameter.nbytes for parameter in model.parameters())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert memory.gradients == sum(gradient.nbytes for gradient in gradients)
    assert memory.optimizer == sum(state.nbytes for state in states)
    assert memory.total == 4 * memory.parameters


def test_memory_to_infer_is_that_of_the_parameters():
    assert Memory.of(10, "bfloat16", "infer") == Memory(20, 0, 0)
    assert Memory.of(10, "float32", "train").to_dict() == {
        "parameters": 40, "gradients": 40, "optimizer": 80, "total": 160,
    }  # fmt: skip


def test_llama_405b_has_the_published_number_of_parameters():
    found = totals(plan("llama-405b-shape"))
    assert found.cost.parameters == 405_853_388_800
    # 2 FLOPs a parameter of every matrix but the embedding's, and 4·h·T of attention a layer.
    h, t, layers, vocab = 16384, 8192, 126, 128256
    norms = (2 * layers + 1) * h
    assert found.cost.flops == 2 * (405_853_388_800 - vocab * h - norms) + layers * 4 * h * t
    assert found.cost.kv_bytes == 2 * 8 * 128 * 2 * layers  # keys and values, 8 groups of 128, in bfloat16


@pytest.mark.parametrize(
    ("window", "keys"), [([3, 0], 4), ([2, 2], 5), ([None, 0], LENGTH), ([100, 0], LENGTH), ([23, 0], LENGTH)]
)
def test_window_bounds_the_keys_that_a_query_meets(window, keys):
    windowed = costs(plan(spec({"config": {"window_size": window}})))["layers.0.self_attention.core_attention"]
    assert windowed.flops == 2 * 4 * (8 + 8) * keys


def test_costs_of_a_place_hold_those_inside():
    found = costs(plan(load_spec("tiny-llama")))
    layer = [found[f"layers.0.{name}"] for name in ("input_layernorm", "self_attention", "pre_mlp_layernorm", "mlp")]
    assert sum(layer, Cost()) == found["layers.0"]


def test_third_partys_architecture_is_not_complete_until_it_is_measured(fakes, make_spec):
    made = plan(make_spec(), registry=fakes)
    found = costs(made)
    assert not found[""].is_complete
    assert found["layers.0.mlp.up"] == Cost(8 * 12 + 12, 2 * 8 * 12)
    measured = {"": Cost(1, 2, 3)}
    assert costs(made, measured)[""] == Cost(1, 2, 3)
    assert totals(made).to_dict()["is_complete"] is False
    assert made.to_dict(measured)["totals"]["parameters"] == 1


def test_item_size_of_what_has_no_width_is_a_byte():
    assert (item_size("bool"), item_size("float64"), item_size("float8_e5m2")) == (1, 8, 1)
