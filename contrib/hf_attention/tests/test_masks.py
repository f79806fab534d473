"""prepare_mask against the masks that transformers draws itself, and LazyMask in the hands of other code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import masking_utils as hf
from transom import AttentionMask
from transom.errors import InputError
from transom_hf_attention.masks import LazyMask, mask_for_call, prepare_mask

B = 2
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
POSITIONS = torch.tensor([[0, 1, 0, 1, 2, 0], [3, 0, 1, 2, 3, 4]])
FUNCTIONS = {
    "causal": hf.causal_mask_function,
    "bidirectional": hf.bidirectional_mask_function,
    "window": hf.sliding_window_causal_mask_function(3),
    "window both ways": hf.sliding_window_bidirectional_mask_function(2),
}
# s, t, q_offset, kv_offset: a prompt, a step, a chunk, a static cache, a sliding cache.
SHAPES = [(6, 6, 0, 0), (1, 6, 5, 0), (2, 6, 4, 0), (2, 9, 3, 0), (1, 4, 7, 4), (3, 5, 7, 5), (3, 8, 0, 0)]


def padding(kind: str, length: int) -> torch.Tensor | None:
    places = torch.arange(length)
    if kind == "none":
        return None
    rows = {
        "left": [places >= 3, places >= 0],
        "right": [places < 2, places < length],
        "nothing": [places >= 0, places >= 0],
    }
    return torch.stack(rows[kind])


@pytest.mark.parametrize("offset_is_tensor", [False, True])
@pytest.mark.parametrize("kind", ["none", "left", "right", "nothing"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_prepared_mask_is_the_one_that_transformers_draws(
    name: str, shape: tuple[int, int, int, int], kind: str, offset_is_tensor: bool
) -> None:
    s, t, q_offset, kv_offset = shape
    if name == "bidirectional" and offset_is_tensor:
        q_offset = 0
    call: dict[str, Any] = {
        "batch_size": B,
        "q_length": s,
        "kv_length": t,
        "q_offset": torch.tensor(q_offset) if offset_is_tensor else q_offset,
        "kv_offset": kv_offset,
        "mask_function": FUNCTIONS[name],
        "attention_mask": padding(kind, q_offset + s),
    }
    found = prepare_mask(**call, dtype=torch.float32)
    assert isinstance(found, LazyMask)
    assert torch.equal(found.draw(), hf.sdpa_mask(**call, allow_is_causal_skip=False))


@pytest.mark.parametrize("name", ["causal", "window"])
def test_prepared_mask_keeps_packed_sequences_apart(name: str) -> None:
    function = hf.packed_sequence_compatibility_function(FUNCTIONS[name], POSITIONS, SEGMENTS)
    call: dict[str, Any] = {"batch_size": B, "q_length": 6, "kv_length": 6, "mask_function": function}
    found = prepare_mask(**call)
    assert isinstance(found, LazyMask)
    assert "packed" in found.mask.features
    assert torch.equal(found.draw(), hf.sdpa_mask(**call, allow_is_causal_skip=False))


def test_prepared_mask_is_drawn_when_its_function_is_not_known() -> None:
    function = hf.or_masks(hf.causal_mask_function, lambda b, h, q, k: k == 5)
    call: dict[str, Any] = {"batch_size": B, "q_length": 6, "kv_length": 6, "mask_function": function, "use_vmap": True}
    found = prepare_mask(**call, attention_mask=padding("left", 6))
    assert not isinstance(found, LazyMask)
    wanted = hf.sdpa_mask(**call, attention_mask=padding("left", 6), allow_is_causal_skip=False)
    assert torch.equal(found, wanted)


def test_prepared_mask_is_plainly_causal_when_nothing_else_is_said() -> None:
    found = prepare_mask(B, 6, 6, attention_mask=padding("nothing", 6))
    assert isinstance(found, LazyMask)
    assert found.mask.is_plain_causal()


def lazy() -> LazyMask:
    found = prepare_mask(B, 4, 4, attention_mask=padding("left", 4))
    assert isinstance(found, LazyMask)
    return found


def test_lazy_mask_is_a_boolean_tensor_to_other_code() -> None:
    mask, drawn = lazy(), lazy().draw()
    assert (mask.shape, mask.dtype, mask.device, mask.ndim) == (drawn.shape, torch.bool, drawn.device, 4)
    assert mask.contiguous() is mask
    for found, wanted in (
        (mask[:, :, -1:], drawn[:, :, -1:]),
        (mask.clone(), drawn),
        (~mask, ~drawn),
        (mask.expand(B, 3, 4, 4), drawn.expand(B, 3, 4, 4)),
        (torch.where(mask, 0.0, 1.0), torch.where(drawn, 0.0, 1.0)),
        (mask.to(torch.float32), drawn.float()),
    ):
        assert not isinstance(found, LazyMask)
        assert torch.equal(found, wanted)


def test_lazy_mask_says_what_it_is() -> None:
    assert repr(prepare_mask(B, 4, 4)).startswith("LazyMask(AttentionMask(causal=True")


def test_lazy_mask_that_hides_nothing_is_all_true() -> None:
    found = prepare_mask(B, 3, 4, mask_function=hf.bidirectional_mask_function)
    assert isinstance(found, LazyMask)
    assert bool(found.draw().all())
    assert found.draw().shape == (B, 1, 3, 4)


def test_lazy_mask_refuses_to_be_written_to() -> None:
    mask = lazy()
    for write in (lambda: mask.__setitem__((0, 0), False), lambda: mask.logical_not_(), lambda: mask.fill_(True)):
        with pytest.raises(InputError, match=r"writes into an attention mask that was made for Transom") as caught:
            write()
        assert caught.value.hint == "mask.clone() gives one that can be written to"
    mask.expand(B, 1, 4, 4).fill_(False)  # a drawn one, which nobody else holds
    assert torch.equal(mask.draw(), lazy().draw())


def call(attention_mask: Any, s: int = 3, t: int = 4, **changes: Any) -> AttentionMask:
    return mask_for_call(
        attention_mask, s, t, **({"is_causal": True, "position_bias": None, "asked_by": "a test"} | changes)
    )


def test_a_boolean_mask_is_kept_and_cut_to_the_keys() -> None:
    keep = torch.rand(B, 1, 3, 6) < 0.5
    assert torch.equal(call(keep).keep, keep[..., :4])


def test_a_floating_mask_is_added_and_its_least_number_hides() -> None:
    added = torch.randn(B, 1, 3, 4)
    added[0, 0, 1, 2], added[1, 0, 0, 0] = torch.finfo(torch.float32).min, -torch.inf
    bias = call(added).bias
    hidden = bias.isneginf()
    assert hidden.sum() == 2
    assert hidden[0, 0, 1, 2]
    assert hidden[1, 0, 0, 0]
    assert torch.equal(bias[~hidden], added[~hidden])


def test_a_position_bias_is_added_to_any_mask() -> None:
    bias, added = torch.randn(1, 2, 4, 4), torch.randn(B, 1, 4, 4)
    assert call(lazy(), 4, 4, position_bias=bias).bias is bias
    assert call(lazy(), 4, 4, position_bias=bias).key_padding is not None
    assert torch.equal(call(added, 4, 4, position_bias=bias).bias, added + bias)


@pytest.mark.parametrize(("s", "is_causal", "wanted"), [(4, True, True), (1, True, False), (3, False, False)])
def test_without_a_mask_the_module_says_whether_it_is_causal(s: int, is_causal: bool, wanted: bool) -> None:
    assert call(None, s, 4, is_causal=is_causal).causal is wanted


def test_no_mask_is_refused_where_causality_needs_one() -> None:
    with pytest.raises(InputError, match="with 3 queries, 4 keys and no mask: which keys are later is not known"):
        call(None)


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (torch.ones(2, 4), r"torch.float32 \[2, 4\]"),
        (torch.ones(2, 1, 3, 4, dtype=torch.long), r"torch.int64 \[2, 1, 3, 4\]"),
        ("causal", "str"),
    ],
)
def test_other_masks_are_refused(mask: Any, what: str) -> None:
    with pytest.raises(InputError, match=f"an attention mask that is {what} cannot be handed to Transom") as caught:
        call(mask)
    assert caught.value.asked_by == "a test"
