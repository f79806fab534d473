"""The compiled step: one graph for each size, none more for a sequence that grows."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
import transom
from torch._dynamo.testing import CompileCounterWithBackend
from transom.errors import CacheError, InputError
from transom.inference.beam_search import beam_search
from transom.inference.compiled import rounded_capacity
from transom.inference.generate import generate
from transom.inference.settings import BeamSettings, GenerationSettings

PROMPT = [72, 101, 108, 108, 111]


class Counting:
    """Compiles as ``compile=True`` does, with a backend that counts its graphs."""

    def __init__(self, backend="eager"):
        self.counter = CompileCounterWithBackend(backend)

    def __call__(self, step):
        return torch.compile(step, fullgraph=True, dynamic=False, backend=self.counter)

    @property
    def graphs(self):
        return self.counter.frame_count


@pytest.fixture(autouse=True)
def _no_recompiles():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("kind", ["static", "sliding_window", "paged", "int8"])
def test_a_growing_sequence_has_one_graph(spec, kind, rows):
    config = spec["config"] | {"window_size": [6, 0], "window_attn_skip_freq": 2}
    model = transom.build(spec | {"config": config}, use={"kv_cache": kind}, mode="infer", seed=0)
    counting = Counting()
    settings = GenerationSettings(greedy=True, max_new_tokens=19, compile=counting)
    prompts = [[i + 1, *PROMPT[1:]] for i in range(rows)]
    compiled = generate(model, prompts, settings)
    assert counting.graphs == 1
    plain = generate(model, prompts, replace(settings, compile=False))
    assert [row.tokens for row in compiled] == [row.tokens for row in plain]


def test_rows_of_unequal_length_have_one_graph_of_their_own(model):
    counting = Counting("aot_eager")
    settings = GenerationSettings(greedy=True, max_new_tokens=9, compile=counting)
    unequal = [[7], PROMPT, [1, 2, 3]]
    compiled = generate(model, unequal, settings)
    assert counting.graphs == 1
    assert [row.tokens for row in compiled] == [
        row.tokens for row in generate(model, unequal, replace(settings, compile=False))
    ]
    generate(model, [PROMPT] * 3, settings)
    assert counting.graphs == 2


def test_later_calls_use_the_graph_again(model):
    counting = Counting()
    settings = GenerationSettings(max_new_tokens=6, compile=counting)
    for prompt in (PROMPT, [1], [5] * 9):
        generate(model, [prompt], settings, seed=1)
    assert counting.graphs == 1


def test_beams_have_one_graph(model):
    counting = Counting()
    settings = BeamSettings(num_beams=3, max_new_tokens=8, compile=counting)
    (compiled,), (plain,) = (
        beam_search(model, [PROMPT], each)[0] for each in (settings, replace(settings, compile=False))
    )
    assert compiled.tokens == plain.tokens
    assert compiled.score == pytest.approx(plain.score, rel=1e-5)
    assert counting.graphs == 1


@pytest.mark.parametrize("read", [[[5, 6, 7], [8, 9, 10]], [[5, 6, 7], [11]]], ids=["even", "padded"])
def test_what_an_encoder_decoder_writes_has_one_graph(read):
    config = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "position_embedding_type": "relative",
        "init_method_std": 0.5,
    }
    spec = {"model": "t5", "vocab_size": 40, "max_sequence_length": 16, "config": config, "masks": ["padding"]}
    model, counting = transom.build(spec, mode="infer", seed=0), Counting()
    settings = GenerationSettings(greedy=True, max_new_tokens=9, start_id=0, compile=counting)
    plain = generate(model, read, replace(settings, compile=False))
    for _ in range(2):
        assert [row.tokens for row in generate(model, read, settings)] == [row.tokens for row in plain]
    assert counting.graphs == 1


def test_each_model_has_graphs_of_its_own(spec):
    counting = Counting()
    settings = GenerationSettings(greedy=True, max_new_tokens=3, compile=counting)
    with torch._dynamo.config.patch(recompile_limit=2):
        for seed in range(4):  # more than one function may be compiled anew
            model = transom.build(spec, mode="infer", seed=seed)
            compiled = generate(model, [PROMPT], settings)[0].tokens
            assert compiled == generate(model, [PROMPT], replace(settings, compile=False))[0].tokens
    assert counting.graphs == 4


def test_a_compiled_model_is_let_go(spec):
    model = transom.build(spec, mode="infer", seed=0)
    generate(model, [PROMPT], GenerationSettings(max_new_tokens=3, compile=Counting()))
    torch._dynamo.reset()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_true_compiles_the_whole_step(model, monkeypatch):
    asked = []

    def compile_(step, **settings):
        asked.append(settings)
        return step

    monkeypatch.setattr(torch, "compile", compile_)
    generate(model, [PROMPT], GenerationSettings(max_new_tokens=3, compile=True))
    assert asked == [{"fullgraph": True, "dynamic": False}]


@pytest.mark.parametrize(("rows", "products"), [(1, 0), (2, 9)])
def test_true_reads_each_weight_once_for_a_single_row(spec, rows, products, monkeypatch):
    linears = []

    def backend(graph, inputs):
        linears.append(sum(node.target is F.linear for node in graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = transom.build(spec, mode="infer", seed=0)
    settings = GenerationSettings(greedy=True, max_new_tokens=9, compile=True)
    compiled = generate(model, [PROMPT] * rows, settings)
    plain = generate(model, [PROMPT] * rows, replace(settings, compile=False))
    assert [row.tokens for row in compiled] == [row.tokens for row in plain]
    assert linears == [products]  # of each graph: four in each of two layers, and the logits


def test_caches_of_the_caller_are_checked_before_a_compiled_step(model):
    model.setup_caches(1, capacity=8)
    compile_ = partial(torch.compile, backend="eager")
    with pytest.raises(CacheError, match="14 positions are asked for and the cache holds 8"):
        generate(model, [PROMPT], GenerationSettings(max_new_tokens=10, compile=compile_))


def test_a_model_without_caches_cannot_be_compiled():
    class Plain(torch.nn.Linear):
        max_seq_len = 9

    with pytest.raises(InputError, match="compile needs caches, and Plain has none") as caught:
        generate(Plain(1, 1), [[1]], GenerationSettings(max_new_tokens=1, compile=True))
    assert caught.value.name == "compile"


@pytest.mark.parametrize(
    ("capacity", "most", "rounded"),
    [(1, None, 64), (64, None, 64), (65, None, 128), (100, 110, 110), (5, 24, 24), (None, 24, None)],
)
def test_capacities_are_rounded_to_powers_of_two_that_the_model_can_have(capacity, most, rounded):
    assert rounded_capacity(capacity, most) == rounded
