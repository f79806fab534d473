"""Decoding with each kind of cache: the full forward, chosen by name, with masks that speak of positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import Tensor
from transom import AttentionMask
from transom.errors import CacheError, MaskError, ResolutionError, SpecError
from transom.transformer.kv_cache import StaticKVCache

KINDS = {
    "static": "StaticKVCache",
    "sliding_window": "SlidingWindowKVCache",
    "paged": "PagedKVCache",
    "int8": "Int8KVCache",
}
POSITIONS = {
    "rope": {"position_embedding_type": "rope"},
    "learned": {"position_embedding_type": "learned_absolute"},
    "alibi": {"position_embedding_type": "alibi"},
    "every second window": {"position_embedding_type": "rope", "window_attn_skip_freq": 2, "num_query_groups": 4},
}
LENGTHS = (9, 4, 1)


def build(kind: str = "static", config: dict[str, Any] | None = None, **changes: Any) -> Any:
    shape = {
        "num_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "window_size": [4, 0],
        "init_method_std": 0.2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    spec = {"vocab_size": 61, "max_sequence_length": 24, "config": shape | (config or {}), **changes}
    return transom.build(spec, use={"kv_cache": kind}, mode="infer", seed=0)


def tokens(b: int = 3, s: int = 14) -> Tensor:
    return torch.randint(61, (b, s), generator=torch.Generator().manual_seed(0))


def close(found: Tensor, full: Tensor, kind: str) -> None:
    """Hold logits to the full forward's; int8 rounds keys and values to 1/254 of a head's largest number."""
    atol = 0.02 * float(full.abs().max()) if kind == "int8" else 1e-5
    torch.testing.assert_close(found, full, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("config", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_full_forward(kind: str, config: dict[str, Any]) -> None:
    model, ids = build(kind, config), tokens()
    full = model(ids)
    model.setup_caches(4)
    assert type(model.cache).__name__ == KINDS[kind]
    pieces = [(0, 5), (5, 8), *((i, i + 1) for i in range(8, 14))]
    steps = [model(ids[:, i:j], input_pos=torch.arange(i, j)) for i, j in pieces]
    close(torch.cat(steps, dim=1), full, kind)


@pytest.mark.parametrize("config", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_rows_padded_on_the_left_gives_the_full_forward(kind: str, config: dict[str, Any]) -> None:
    model, ids = build(kind, config), tokens()
    full = model(ids)
    model.setup_caches(3)
    s = max(LENGTHS)
    padded, positions = torch.zeros(3, s, dtype=torch.long), torch.full((3, s), -1)
    for row, length in enumerate(LENGTHS):
        padded[row, s - length :], positions[row, s - length :] = ids[row, :length], torch.arange(length)
    last = [model(padded, input_pos=positions)[:, -1]]
    for step in range(5):
        at = torch.tensor(LENGTHS)[:, None] + step
        last.append(model(ids.gather(1, at), input_pos=at)[:, -1])
    expected = torch.stack([full[row, length - 1 : length + 5] for row, length in enumerate(LENGTHS)])
    close(torch.stack(last, dim=1), expected, kind)


@pytest.mark.parametrize("kind", ["static", "sliding_window", "paged"])
def test_masks_of_the_caller_speak_of_positions(kind: str) -> None:
    model, ids = build(kind, masks=["keep"]), tokens()
    keep = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(1)) < 0.6
    keep &= torch.ones(14, 14).tril().bool()
    full = model(ids, mask=keep)
    model.setup_caches(3, capacity=14)
    steps = [model(ids[:, :6], mask=keep[:, :6], input_pos=torch.arange(6))]
    steps += [model(ids[:, i : i + 1], mask=keep[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(6, 14)]
    close(torch.cat(steps, dim=1), full, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_float_masks_are_refused_whatever_is_in_them(kind: str) -> None:
    model, ids = build(kind, masks=["keep"]), tokens(1, 3)
    model.setup_caches(1)
    for fill in (0.0, 1.0, -torch.inf):
        with pytest.raises(MaskError, match=r"keep must be a tensor of bool dtype, not torch\.float32"):
            model(ids, mask=torch.full((1, 3, 3), fill), input_pos=torch.arange(3))
    assert model.cache.lengths.tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_failed_forward_leaves_all_layers_in_step(kind: str) -> None:
    model, ids = build(kind), tokens(1, 9)
    full = model(ids)
    model.setup_caches(1)
    model(ids[:, :5], input_pos=torch.arange(5))
    handle = model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model(ids[:, 5:8], input_pos=torch.arange(5, 8))
    handle.remove()
    assert model.cache.lengths.tolist() == [5]
    close(model(ids[:, 5:], input_pos=torch.arange(5, 9)), full[:, 5:], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_caches_have_a_dtype_of_their_own(kind: str) -> None:
    model, ids = build(kind), tokens()
    full = model(ids)
    model.setup_caches(3, torch.bfloat16)
    steps = [model(ids[:, :5], input_pos=torch.arange(5)), model(ids[:, 5:6], input_pos=torch.tensor([5]))]
    torch.testing.assert_close(torch.cat(steps, dim=1), full[:, :6], atol=0.02 * float(full.abs().max()), rtol=0)


def test_rows_go_on_from_others_when_caches_are_reordered() -> None:
    for kind in ("static", "sliding_window", "paged"):
        model, ids = build(kind), tokens()
        full = model(torch.cat([ids[[2, 0, 0], :8], ids[:, 8:9]], dim=1))
        model.setup_caches(3)
        model(ids[:, :8], input_pos=torch.arange(8))
        model.reorder_caches(torch.tensor([2, 0, 0]))
        close(model(ids[:, 8:9], input_pos=torch.tensor([8])), full[:, 8:], kind)


def test_caches_are_chosen_by_the_spec_in_training_too() -> None:
    spec = {"vocab_size": 8, "max_sequence_length": 8, "use": {"kv_cache": "paged"}}
    config = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    plan = transom.plan(spec | {"config": config}, mode="train")
    node = next(node for node in plan.nodes() if node.slot == "kv_cache")
    assert (node.path, node.resolution.chosen.name, node.request.context.mode) == ("cache", "paged", "infer")


def test_paged_caches_take_options_of_the_spec() -> None:
    model = build("paged", options={"kv_cache": {"block_size": 4, "num_blocks": 5}})
    model.setup_caches(2)
    assert model.cache.blocks.num_blocks == 5
    with pytest.raises(CacheError, match="6 more blocks of 4 positions are needed and 5 of 5 are free"):
        model(tokens(2, 12), input_pos=torch.arange(12))
    with pytest.raises(SpecError, match="transom/static takes no options"):
        build("static", options={"kv_cache": {"block_size": 4}})


def test_sliding_windows_are_refused_where_no_layer_has_one() -> None:
    with pytest.raises(ResolutionError, match="no layer of the model has a window to its left"):
        build("sliding_window", {"window_size": None})
    assert build("sliding_window | static", {"window_size": None}).plan is not None


def test_third_party_cache_is_made_when_it_is_asked_for() -> None:
    made = []

    def acme(config, *, request, batch_size, capacity, dtype=None, device=None):  # type: ignore[no-untyped-def]
        made.append((request.windows, batch_size, capacity, dtype))
        return StaticKVCache(
            num_layers=len(request.windows),
            batch_size=batch_size,
            capacity=capacity,
            num_query_groups=request.num_query_groups,
            head_size=request.head_size,
        )

    with transom.override("kv_cache", "acme", acme):
        model, ids = build("acme"), tokens()
    assert made == []
    model.setup_caches(3, capacity=20)
    assert made == [(((4, 0),) * 3, 3, 20, torch.float32)]
    torch.testing.assert_close(model(ids, input_pos=torch.arange(14)), build()(ids))


@pytest.mark.parametrize(
    ("act", "text", "data"),
    [
        (lambda m: m.reorder_caches(torch.tensor([0])), "there are no caches to reorder", {}),
        (
            lambda m: m.setup_caches(1, capacity=25),
            "a capacity of 25 is more than max_seq_len, 24",
            {"capacity": 24, "asked": 25},
        ),
        (lambda m: m.setup_caches(0), "batch_size is 0; a cache needs at least 1", {}),
    ],
)
def test_decoder_refuses_caches_that_cannot_be(act: Any, text: str, data: dict[str, int]) -> None:
    with pytest.raises(CacheError, match=text) as caught:
        act(build())
    assert data.items() <= caught.value.data.items()


def test_masks_without_cause_see_what_is_held() -> None:
    model, ids = build("paged", {"window_size": None}), tokens(1, 4)
    model.setup_caches(1)
    full = model(ids, mask=AttentionMask(), input_pos=torch.arange(4))
    model.delete_caches()
    close(full, model(ids, mask=AttentionMask()), "paged")
