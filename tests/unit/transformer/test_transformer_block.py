"""The stack: its layers, its recompute, its cache, its stages."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transom.errors import CacheError, ConfigError, InputError, ParallelError
from transom.transformer import _mask_rendering
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.kv_cache import StaticKVCache
from transom.transformer.recompute import LayerRecompute
from transom.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules, TransformerStack

ROPE = {"position_embedding_type": "rope", "num_query_groups": 2}


def causal() -> AttentionMask:
    return AttentionMask(causal=True)


def cache_of(block: Any, **sizes: Any) -> StaticKVCache:
    usual = {"num_layers": len(block.layers), "batch_size": 2, "capacity": 8, "num_query_groups": 2, "head_size": 8}
    return StaticKVCache(**(usual | sizes))


def test_block_runs_its_layers_in_order_then_the_norm(small_config: Any, build_block: Any) -> None:
    block, x = build_block(small_config(num_layers=3)), torch.randn(2, 5, 32)
    hidden = x
    for layer in block.layers:
        hidden, _ = layer(hidden, mask=causal())
    assert torch.equal(block(x, mask=causal()), block.final_layernorm(hidden))
    assert torch.equal(block.run_layers(x, mask=causal()), hidden)
    names = {name.split(".")[0] for name, _ in block.named_parameters()}
    assert names == {"layers", "final_layernorm"}


@pytest.mark.parametrize(
    ("arguments", "has_norm"),
    [({}, True), ({"post_layer_norm": False}, False), ({"post_process": False}, False), ({"norm": False}, False)],
    ids=str,
)
def test_block_has_a_final_norm_when_it_is_asked_for_and_last(
    arguments: Any, has_norm: bool, small_config: Any, build_block: Any
) -> None:
    block = build_block(small_config(), **arguments)
    assert (block.final_layernorm is not None) is has_norm
    x = torch.randn(1, 3, 32)
    assert torch.equal(block(x), block.final_layernorm(block.run_layers(x)) if has_norm else block.run_layers(x))


def test_block_numbers_its_layers_from_the_first_when_builders_are_alike_or_not(small_config: Any) -> None:
    made: list[tuple[str, int]] = []

    def builder(name: str) -> Any:
        def build(config: Any, *, layer_number: int, tp_group: Any) -> nn.Module:
            made.append((name, layer_number))
            return nn.Identity()

        return build

    TransformerBlock(small_config(num_layers=3), TransformerBlockSubmodules(builder("a")))
    TransformerBlock(
        small_config(num_layers=2), TransformerBlockSubmodules([builder("b"), builder("c")]), first_layer_number=5
    )
    assert made == [("a", 1), ("a", 2), ("a", 3), ("b", 5), ("c", 6)]


def test_block_refuses_to_be_made_without_layers(small_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"a block of no layers cannot be built\.") as caught:
        TransformerBlock(small_config(), TransformerBlockSubmodules([]))
    assert caught.value.field == "layers"


def test_context_reaches_every_layer_when_given(small_config: Any) -> None:
    class Reads(nn.Module):
        def forward(self, hidden: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
            assert arguments["context_mask"] is mask
            return hidden + arguments["context"], arguments["context"] * 2

    mask = causal()
    stack = TransformerStack([Reads(), Reads(), Reads()])
    got = stack.run_layers(torch.zeros(2), context=torch.ones(2), context_mask=mask)
    assert got.tolist() == [7.0, 7.0]


def test_later_stage_starts_from_what_it_was_given(small_config: Any, build_block: Any) -> None:
    config = small_config(num_layers=2)
    whole = build_block(config)
    first, last = (
        TransformerStack([layer], final_layernorm=norm)
        for layer, norm in zip(whole.layers, (None, whole.final_layernorm), strict=True)
    )
    stage = build_block(config, pre_process=False)
    stage.layers, stage.final_layernorm = last.layers, last.final_layernorm
    x = torch.randn(2, 5, 32)
    stage.set_input_tensor(first.run_layers(x, mask=causal()))
    assert torch.equal(stage(None, mask=causal()), whole(x, mask=causal()))


def test_block_refuses_to_run_when_it_has_nothing_to_start_from(small_config: Any, build_block: Any) -> None:
    with pytest.raises(InputError, match="the block has no hidden states to start from") as caught:
        build_block(small_config(), pre_process=False)(torch.randn(1, 2, 32))
    assert caught.value.hint == "call set_input_tensor first"
    with pytest.raises(InputError) as caught:
        build_block(small_config())(None)
    assert caught.value.hint == "pass hidden_states"


RECOMPUTE = {
    "uniform 1": {"recompute_method": "uniform", "recompute_num_layers": 1},
    "uniform 2, the last chunk short": {"recompute_method": "uniform", "recompute_num_layers": 2},
    "uniform 5": {"recompute_method": "uniform", "recompute_num_layers": 5},
    "block 2": {"recompute_method": "block", "recompute_num_layers": 2},
    "block 5": {"recompute_method": "block", "recompute_num_layers": 5},
}


def train_step(block: Any, mask: AttentionMask) -> list[Tensor]:
    torch.manual_seed(7)
    x = torch.randn(2, 5, 32, requires_grad=True)
    collect: dict[int, Tensor] = {0: x, 3: x}
    output = block(x, mask=mask, collect=collect)
    (output.square().sum() + collect[0].sum() + collect[3].square().sum()).backward()
    return [output, *collect.values(), x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("how", RECOMPUTE)
def test_recomputed_block_gives_the_same_bits_when_it_drops(how: str, small_config: Any, build_block: Any) -> None:
    fields = {"num_layers": 5, "hidden_dropout": 0.2, "attention_dropout": 0.2, **ROPE}
    padding = torch.tensor([[True] * 5, [True, True, False, False, True]])
    plain = build_block(small_config(**fields))
    again = build_block(small_config(**fields, recompute_granularity="full", **RECOMPUTE[how]))
    expected = train_step(plain, AttentionMask(causal=True, key_padding=padding))
    got = train_step(again, AttentionMask(causal=True, key_padding=padding))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("how", ["uniform 2, the last chunk short", "block 2"])
def test_recompute_works_when_the_bias_is_learned(how: str, small_config: Any, build_block: Any) -> None:
    results = []
    for recompute in ({}, {"recompute_granularity": "full", **RECOMPUTE[how]}):
        block = build_block(small_config(num_layers=5, **recompute))
        bias = torch.linspace(-1, 1, 4 * 25).view(1, 4, 5, 5).requires_grad_()
        results.append([*train_step(block, AttentionMask(causal=True, bias=bias)), bias.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("how", "expected"), [("uniform 2, the last chunk short", [2] * 5), ("block 2", [2, 2, 1, 1, 1])]
)
def test_recompute_runs_the_chosen_layers_twice_when_training_only(
    how: str, expected: list[int], small_config: Any, build_block: Any
) -> None:
    block = build_block(small_config(num_layers=5, recompute_granularity="full", **RECOMPUTE[how]))
    runs = [0] * 5
    for index, layer in enumerate(block.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    block(torch.randn(1, 3, 32, requires_grad=True)).sum().backward()
    assert runs == expected
    runs[:] = [0] * 5
    block.eval()(torch.randn(1, 3, 32, requires_grad=True)).sum().backward()
    assert runs == [1] * 5


def test_recompute_is_read_from_the_config(small_config: Any) -> None:
    assert LayerRecompute.of(small_config()) is None
    selective = small_config(recompute_granularity="selective", recompute_modules=("mlp",))
    assert LayerRecompute.of(selective) is None
    full = {"num_layers": 5, "recompute_granularity": "full"}
    assert LayerRecompute.of(small_config(**full, **RECOMPUTE["block 2"])) == LayerRecompute(at_most=2)
    assert LayerRecompute.of(small_config(**full, **RECOMPUTE["uniform 5"])) == LayerRecompute(together=5)


def test_hidden_states_are_collected_when_layers_are_chosen(small_config: Any, build_block: Any) -> None:
    block, x = build_block(small_config(num_layers=3)), torch.randn(2, 5, 32)
    collect = {2: x, 0: x}
    block(x, mask=causal(), collect=collect)
    after_first = block.layers[0](x, mask=causal())[0]
    assert torch.equal(collect[0], after_first)
    assert torch.equal(collect[2], block.run_layers(x, mask=causal()))


@pytest.mark.parametrize("window", [None, (2, 0)], ids=["full", "window"])
@pytest.mark.parametrize("position", ["rope", "none"])
def test_packed_sequences_give_what_each_gives_alone(
    window: Any, position: str, small_config: Any, build_block: Any
) -> None:
    fields = {"params_dtype": "float64", "window_size": window, "position_embedding_type": position}
    block = build_block(small_config(num_layers=2, num_query_groups=2, **fields))
    ends = torch.tensor([0, 4, 5, 11])
    x = torch.randn(1, 13, 32, dtype=torch.float64)
    packed = block(x, mask=AttentionMask.from_cumulative_lengths(ends, 13, causal=True))
    for start, end in pairwise(ends.tolist()):
        alone = block(x[:, start:end], mask=causal())
        torch.testing.assert_close(packed[:, start:end], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [None, (2, 0)], ids=["full", "window"])
@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2]], ids=str)
def test_decoding_equals_the_whole_when_cached(
    window: Any, chunks: list[int], small_config: Any, build_block: Any
) -> None:
    block = build_block(small_config(num_layers=3, params_dtype="float64", window_size=window, **ROPE)).eval()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    cache, pieces, start = cache_of(block, dtype=torch.float64), [], 0
    for s in chunks:
        where = torch.arange(start, start + s)
        pieces.append(block(x[:, where], mask=causal(), positions=where, cache=cache))
        start += s
    torch.testing.assert_close(torch.cat(pieces, 1), block(x, mask=causal()), rtol=0, atol=1e-11)


def test_decoding_equals_each_row_alone_when_rows_are_ragged(small_config: Any, build_block: Any) -> None:
    block = build_block(small_config(num_layers=2, params_dtype="float64", **ROPE)).eval()
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    cache = cache_of(block, dtype=torch.float64)
    prompt = torch.stack([x[0, :3], torch.cat([x[1, :1] * 9, x[1, :2]])])
    block(prompt, mask=causal(), positions=torch.tensor([[0, 1, 2], [-1, 0, 1]]), cache=cache)
    for i in (0, 1):
        new = torch.stack([x[0, 3 + i : 4 + i], x[1, 2 + i : 3 + i]])
        got = block(new, mask=causal(), positions=torch.tensor([[3 + i], [2 + i]]), cache=cache)
    for row, length in ((0, 5), (1, 4)):
        alone = block(x[row : row + 1, :length], mask=causal())[0, -1]
        torch.testing.assert_close(got[row, 0], alone, rtol=0, atol=1e-11)


def test_masks_are_derived_once_when_layers_share_a_cached_step(
    small_config: Any, build_block: Any, monkeypatch: Any
) -> None:
    block = build_block(small_config(num_layers=3))
    cache = cache_of(block, num_query_groups=4)
    rendered = []
    original = _mask_rendering.render_bool
    monkeypatch.setattr(_mask_rendering, "render_bool", lambda *args: rendered.append(1) or original(*args))
    with torch.no_grad():
        block(torch.randn(2, 4, 32), mask=causal(), positions=torch.arange(4), cache=cache)
        ragged = torch.tensor([[4], [3]])
        block(torch.randn(2, 1, 32), mask=causal(), positions=ragged, cache=cache)
    assert len(rendered) == 2


def test_layers_stay_in_step_when_one_of_them_fails(small_config: Any, build_block: Any) -> None:
    block = build_block(small_config(num_layers=2, **ROPE)).eval()
    cache, x = cache_of(block), torch.randn(2, 5, 32)
    expected = block(x, mask=causal())[:, 3:]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with torch.no_grad():
        block(x[:, :3], mask=causal(), positions=torch.arange(3), cache=cache)
        hook = block.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            block(x[:, :2] * 5, mask=causal(), positions=torch.arange(3, 5), cache=cache)
        hook.remove()
        assert cache.lengths.tolist() == [3, 3]
        got = block(x[:, 3:], mask=causal(), positions=torch.arange(3, 5), cache=cache)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_written_when_the_cache_is_full(small_config: Any, build_block: Any) -> None:
    block = build_block(small_config(**ROPE))
    cache = cache_of(block)
    with pytest.raises(CacheError, match="9 positions are asked for and the cache holds 8"):
        block(torch.randn(2, 9, 32), mask=causal(), positions=torch.arange(9), cache=cache)
    assert not any(buffer.any() for buffer in cache.buffers())
    with pytest.raises(CacheError, match="a cache needs the positions"):
        block(torch.randn(2, 3, 32), mask=causal(), cache=cache)


def test_sharded_state_numbers_the_layers_over_all_stages(small_config: Any, build_block: Any) -> None:
    block = build_block(small_config(num_layers=3), first_layer_number=9)
    block.layers[2].mlp.linear_fc1.weight = block.layers[0].mlp.linear_fc1.weight
    state = block.sharded_state_dict("decoder.")
    assert state.keys() == block.state_dict(prefix="decoder.").keys()
    keys = {
        f"decoder.layers.{i}.mlp.linear_fc1.weight": f"decoder.layers.{8 + i}.mlp.linear_fc1.weight" for i in (0, 1)
    }
    keys["decoder.layers.2.mlp.linear_fc1.weight"] = "decoder.layers.8.mlp.linear_fc1.weight"  # tied to the first
    keys["decoder.final_layernorm.weight"] = "decoder.final_layernorm.weight"
    assert {name: state[name].key for name in keys} == keys


PIPELINES: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    # the split, and by hand: the layers of each chunk, in the model's order
    "even": ({}, [[1, 2, 3], [4, 5, 6]]),
    "uneven first": ({"num_layers_in_first_pipeline_stage": 1}, [[1], [2, 3, 4, 5, 6]]),
    "uneven last": ({"num_layers_in_last_pipeline_stage": 2}, [[1, 2, 3, 4], [5, 6]]),
    "virtual": (
        {"pipeline_model_parallel_size": 3, "virtual_pipeline_model_parallel_size": 2},
        [[1], [2], [3], [4], [5], [6]],
    ),
    "embedding and loss counted": (
        {"pipeline_model_parallel_size": 4}
        | {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
        [[1], [2, 3], [4, 5], [6]],
    ),
    "layout": ({"pipeline_model_parallel_layout": "Et*4|ttL"}, [[1, 2, 3, 4], [5, 6]]),
    "layout of virtual stages": (
        {"virtual_pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et|tt|(t)*3|L"},
        [[1], [2, 3], [4, 5, 6], []],
    ),
    "embedding alone": ({"pipeline_model_parallel_layout": "E|t*6L"}, [[], [1, 2, 3, 4, 5, 6]]),
}


@pytest.mark.parametrize("split", PIPELINES)
def test_stages_have_the_layers_counted_by_hand_and_compute_what_the_whole_does(
    split: str, small_config: Any, build_block: Any, block_submodules: Any
) -> None:
    fields, by_hand = PIPELINES[split]
    whole = build_block(small_config(num_layers=6))
    config = small_config(**{"num_layers": 6, "pipeline_model_parallel_size": 2} | fields)
    stages, virtual = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
    x = hidden = torch.randn(2, 5, 32)
    state = whole.sharded_state_dict()
    for chunk, numbers in enumerate(by_hand):
        virtual_stage = None if virtual is None else chunk // stages
        part = TransformerBlock.of_stage(config, block_submodules(config), chunk % stages, virtual_stage)
        is_first, is_last = chunk == 0, chunk == len(by_hand) - 1
        assert [layer.layer_number for layer in part.layers] == numbers
        assert (part.pre_process, part.post_process) == (is_first, is_last)
        assert (part.final_layernorm is not None) is is_last
        keys = part.sharded_state_dict()
        part.load_state_dict({name: state[shard.key].data for name, shard in keys.items()})
        part.set_input_tensor(None if is_first else hidden)
        hidden = part(hidden if is_first else None, mask=causal())
    assert torch.equal(hidden, whole(x, mask=causal()))


def test_stage_calls_the_builders_of_its_own_layers_alone(small_config: Any) -> None:
    made: list[tuple[str, int]] = []

    def builder(name: str) -> Any:
        return lambda config, *, layer_number, tp_group: made.append((name, layer_number)) or nn.Identity()

    config = small_config(num_layers=4, pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1)
    each = TransformerBlockSubmodules([builder(name) for name in "abcd"])
    TransformerBlock.of_stage(config, each, 1)
    assert made == [("b", 2), ("c", 3), ("d", 4)]


def test_stage_is_refused_when_it_is_not_there_or_layers_are_missing(small_config: Any) -> None:
    config = small_config(num_layers=4, pipeline_model_parallel_size=2)
    with pytest.raises(ParallelError, match=r"there is no pipeline stage 2 of 2\."):
        TransformerBlock.of_stage(config, TransformerBlockSubmodules(nn.Identity), 2)
    with pytest.raises(ConfigError, match=r"num_layers is 4 and there are 2 builders of layers\.") as caught:
        TransformerBlock.of_stage(config, TransformerBlockSubmodules([nn.Identity] * 2), 1)
    assert (caught.value.field, caught.value.value) == ("layers", 2)
