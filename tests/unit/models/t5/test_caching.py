"""T5 that writes token by token: what it keeps of what it wrote and of what it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import Tensor
from transom.errors import CacheError
from transom.models.t5 import InferenceParams

POSITIONS = ["learned_absolute", "rope", "relative"]
LENGTH = 8


@pytest.fixture
def inputs(ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    return ids(3, 7), ids(3, LENGTH, seed=1), torch.arange(7) < torch.tensor([[7], [4], [6]])


@pytest.fixture
def make(make_t5: Any) -> Any:
    def evaluating(**arguments: Any) -> Any:
        return make_t5(**arguments).eval().requires_grad_(False)

    return evaluating


def steps(prompt: int) -> list[tuple[int, int]]:
    return [(0, prompt), *((i, i + 1) for i in range(prompt, LENGTH))]


def whole(model: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    read, written, padding = inputs
    return model(read, written, padding, None, padding)


def close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 3, LENGTH])
@pytest.mark.parametrize("kind", POSITIONS)
def test_decoding_with_caches_gives_the_whole_forward(kind: str, prompt: int, make: Any, inputs: Any) -> None:
    model, (read, written, padding) = make(position_embedding_type=kind), inputs
    expected = whole(model, inputs)
    hidden = model.encode(read, padding)
    model.setup_caches(3)
    for again in (False, True):  # a second sequence after a reset, and rows of positions
        if again:
            model.reset_caches()
        logits = []
        for start, end in steps(prompt):
            positions = torch.arange(start, end)
            positions = positions.expand(3, -1) if again else positions
            context = hidden if again or start == 0 else None
            logits.append(
                model.decode(written[:, start:end], context, encoder_decoder_attn_mask=padding, input_pos=positions)
            )
        close(torch.cat(logits, dim=1), expected)


@pytest.mark.parametrize("name", ["static", "paged", "int8", "sliding_window"])
def test_every_cache_that_is_named_serves(name: str, ids: Any) -> None:
    config = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "position_embedding_type": "relative"}
    spec = {"model": "t5", "vocab_size": 61, "max_sequence_length": 24, "config": config, "use": {"kv_cache": name}}
    if name == "sliding_window":
        spec |= {"config": config | {"window_size": [3, 0]}, "encoder_config": config}
    model = transom.build(spec, mode="infer", seed=0)
    read, written = ids(2, 7), ids(2, LENGTH, seed=1)
    expected = model(read, written, None, None, None)
    model.setup_caches(2)
    hidden = model.encode(read)
    logits = [
        model.decode(written[:, start:end], hidden, input_pos=torch.arange(start, end)) for start, end in steps(3)
    ]
    tolerance = 2e-2 if name == "int8" else 1e-5
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=tolerance, rtol=tolerance)


def test_what_is_read_is_projected_once_a_sequence(make: Any, inputs: Any, monkeypatch: Any) -> None:
    model, (read, written, padding) = make(), inputs
    calls = []
    for layer in model.decoder.layers:
        layer.cross_attention.linear_kv.register_forward_hook(lambda *_: calls.append(1))
    model.setup_caches(3)
    hidden = model.encode(read, padding)
    for start, end in steps(1):
        model.decode(written[:, start:end], hidden, input_pos=torch.arange(start, end))
    assert len(calls) == 2  # layers
    model.decode(written[:, :1], hidden.clone(), input_pos=torch.tensor([0]))
    assert len(calls) == 4


def test_forward_goes_on_with_the_callers_cache(make: Any, inputs: Any) -> None:
    model, (read, written, padding) = make(position_embedding_type="relative"), inputs
    expected = whole(model, inputs)
    params, other = (InferenceParams(max_batch_size=3, max_sequence_length=LENGTH) for _ in range(2))
    logits = []
    for start, end in steps(2):
        source = read if start == 0 else None
        arguments = (written[:, start:end], padding, None, padding)
        logits.append(model(source, *arguments, inference_params=params))
        params.sequence_len_offset += end - start
    close(torch.cat(logits, dim=1), expected)
    close(model(read, written, padding, None, padding, inference_params=other), expected)
    assert not model.caches_are_enabled()


def test_forward_uses_the_models_own_caches(make: Any, inputs: Any) -> None:
    model, (read, written, padding) = make(), inputs
    expected = whole(model, inputs)
    model.setup_caches(3)
    logits = [
        model(
            read if start == 0 else None,
            written[:, start:end],
            padding,
            None,
            padding,
            input_pos=torch.arange(start, end),
        )
        for start, end in steps(2)
    ]
    close(torch.cat(logits, dim=1), expected)
    model.delete_caches()
    close(whole(model, inputs), expected)


@pytest.mark.parametrize("kind", POSITIONS)
def test_reordered_caches_go_on_from_the_chosen_rows(kind: str, make: Any, inputs: Any) -> None:
    model, (read, written, padding) = make(position_embedding_type=kind), inputs
    rows = torch.tensor([2, 0, 0])
    model.setup_caches(3)
    model.decode(
        written[:, :4], model.encode(read, padding), encoder_decoder_attn_mask=padding, input_pos=torch.arange(4)
    )
    model.reorder_caches(rows)
    last = written[:, 4:5]
    step = model.decode(last, encoder_decoder_attn_mask=padding[rows], input_pos=torch.tensor([4]))
    model.delete_caches()
    chosen = torch.cat([written[rows, :4], last], dim=1)
    expected = model(read[rows], chosen, padding[rows], None, padding[rows])
    close(step, expected[:, 4:])


def test_compiled_steps_share_one_graph(make: Any, inputs: Any) -> None:
    model, (read, written, _) = make(position_embedding_type="relative"), inputs
    expected = model(read, written, None, None, None)
    graphs = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(
        lambda ids, positions: model.decode(ids, input_pos=positions), fullgraph=True, backend=counting
    )
    model.setup_caches(3)
    rows = torch.tensor([0, 1, 2])
    for _ in range(2):
        model.reset_caches()
        model.cache.reserve(3, LENGTH)
        logits = [model.decode(written[:, :1], model.encode(read), input_pos=torch.tensor([0]))]
        for i in range(1, LENGTH):
            model.reorder_caches(rows)
            logits.append(step(written[:, i : i + 1], torch.tensor([i])))
        close(torch.cat(logits, dim=1), expected)
    assert len(graphs) == 1
    torch.compiler.reset()


def test_caches_rewind_and_serve_smaller_batches(make: Any, inputs: Any) -> None:
    model, (read, written, padding) = make(position_embedding_type="relative"), inputs
    expected = whole(model, inputs)
    model.setup_caches(5, capacity=LENGTH)
    hidden = model.encode(read, padding)
    arguments = {"encoder_decoder_attn_mask": padding}
    model.decode(written, hidden, input_pos=torch.arange(LENGTH), **arguments)
    step = model.decode(written[:, 3:5], hidden, input_pos=torch.tensor([3, 4]), **arguments)
    close(step, expected[:, 3:5])


def test_what_was_read_is_not_seen_as_written(make: Any, inputs: Any) -> None:
    """Self- and cross-attention never share an entry: what is read does not count as positions."""
    model, (read, written, padding) = make(), inputs
    model.setup_caches(3)
    model.decode(written[:, :2], model.encode(read, padding), input_pos=torch.arange(2))
    assert model.cache.lengths.tolist() == [2, 2, 2]
    assert [entry.held[0].shape[1] for entry in model.cache.entries] == [7, 7]


def test_wrong_steps_are_refused_before_anything_is_written(make: Any, inputs: Any) -> None:
    model, (read, written, _) = make(), inputs
    hidden = model.encode(read)
    model.setup_caches(3, capacity=4)
    with pytest.raises(CacheError, match="the decoder has nothing to read"):
        model.decode(written[:, :1], input_pos=torch.tensor([0]))
    with pytest.raises(CacheError, match="needs the positions"):
        model.decode(written[:, :1], hidden)
    with pytest.raises(CacheError, match="5 positions are asked for and the cache holds 4"):
        model.decode(written[:, :5], hidden, input_pos=torch.arange(5))
    assert model.cache.lengths.tolist() == [0, 0, 0]
    model.decode(written[:, :1], hidden, input_pos=torch.tensor([0]))
    with pytest.raises(CacheError, match="the cache reads 3 rows and the step writes 2") as error:
        model.decode(written[:2, 1:2], input_pos=torch.tensor([1]))
    assert (error.value.capacity, error.value.asked) == (3, 2)


def test_caches_that_cannot_be_are_refused(make: Any) -> None:
    model = make()
    with pytest.raises(CacheError, match="no caches to reset"):
        model.reset_caches()
    with pytest.raises(CacheError, match="no caches to reorder"):
        model.reorder_caches(torch.tensor([0]))
    with pytest.raises(CacheError, match="a capacity of 25 is more than max_sequence_length, 24") as error:
        model.setup_caches(1, capacity=25)
    assert (error.value.capacity, error.value.asked) == (24, 25)
    with pytest.raises(CacheError, match="attention need not know bottom_right and positions"):
        make(masks=["padding"]).setup_caches(1)
    with pytest.raises(CacheError, match="this stage has no decoder"):
        make(add_decoder=False).setup_caches(1)
