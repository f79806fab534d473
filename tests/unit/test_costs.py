"""Third parties' architectures are built and run on the meta device, and counted."""

from __future__ import annotations

import pytest
import torch
import transom
from torch import nn
from transom.costs import measure
from transom.models.t5.assembly import T5Assembly
from transom.specs.plan import plan
from transom.specs.totals import Cost, costs, totals


class OwnMLP(nn.Module):
    """An MLP with matrices of its own and no parts."""

    built = 0

    def __init__(self, config, submodules, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
        super().__init__()
        type(self).built += 1
        self.up = nn.Linear(config.hidden_size, 10, bias=False)
        self.down = nn.Linear(10, config.hidden_size, bias=False)

    def forward(self, hidden_states, per_token_scale=None):
        return self.down(self.up(hidden_states).relu()), None


class RoutedMLP(OwnMLP):
    """One that looks at values."""

    def forward(self, hidden_states, per_token_scale=None):
        if hidden_states.sum().item() > 0:
            return hidden_states, None
        return super().forward(hidden_states)


class OwnAttention(nn.Module):
    """A self-attention without a core attention."""

    def __init__(self, config, submodules, layer_number, *, tp_group=None):
        super().__init__()
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        return self.mix(hidden_states), None


def test_measure_leaves_cores_own_architectures_to_their_requests():
    assert measure(transom.plan("tiny-llama")) == {}


def test_measure_counts_a_whole_model(fakes, make_spec):
    made = plan(make_spec(), registry=fakes)
    found = measure(made)
    model = transom.build(made)
    assert found[""].parameters == sum(parameter.numel() for parameter in model.parameters())
    # per layer 2·8·12 up and as much down; the tied table once
    assert found == {"": Cost(found[""].parameters, 3 * (2 * 8 * 12 * 2) + 2 * 8 * 16)}
    assert totals(made, found).cost.is_complete


@pytest.fixture
def own():
    OwnMLP.built = 0
    with transom.override("mlp", "own", OwnMLP), transom.override("mlp", "routed", RoutedMLP):
        yield


def test_measure_counts_a_part_and_builds_what_is_alike_once(own):
    made = transom.plan("tiny-llama", use={"mlp": "own"})
    found = measure(made)
    assert found == {f"layers.{i}.mlp": Cost(2 * 192 * 10, 2 * 2 * 192 * 10) for i in range(4)}
    assert OwnMLP.built == 1
    total = totals(made, found).cost
    assert total.parameters == sum(p.numel() for p in transom.build(made, device="meta").parameters())
    assert total.is_complete


def test_measure_marks_what_cannot_run_without_values(own):
    made = transom.plan("tiny-llama", use={"layers.1.mlp": "routed"})
    found = measure(made)
    assert found == {"layers.1.mlp": Cost(2 * 192 * 10, 0, 0, is_complete=False)}
    total = totals(made, found).cost
    assert not total.is_complete
    assert total.flops < totals(transom.plan("tiny-llama")).cost.flops


def test_measure_lets_an_attention_cache_what_its_contract_says():
    with transom.override("self_attention", "own", OwnAttention):
        made = transom.plan("tiny-llama", use={"layers.0.self_attention": "own"})
        found = measure(made)
    own, cores = found["layers.0.self_attention"], costs(made)["layers.1.self_attention"]
    assert own == Cost(192 * 192 + 192, 2 * 192 * 192, cores.kv_bytes)


def test_measure_allocates_nothing(own, monkeypatch):
    seen = []
    forward = OwnMLP.forward
    monkeypatch.setattr(OwnMLP, "forward", lambda self, x, scale=None: seen.append(x.device) or forward(self, x))
    measure(transom.plan("tiny-llama", use={"mlp": "own"}))
    assert seen == [torch.device("meta")]


def test_measure_runs_an_encoder_decoder_on_what_it_reads_and_writes():
    """Its numbers are those that core's own tells without being run."""
    config = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "position_embedding_type": "relative"}
    spec = {"model": "t5", "vocab_size": 32, "max_sequence_length": 12, "config": config}
    told = totals(plan(spec)).cost
    with transom.override("model", "t5", T5Assembly()):
        made = plan(spec)
        found = measure(made)
    assert totals(made, found).cost == told
