"""Masks on their way from transformers to a core attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import masking_utils as hf
from transom import AttentionMask
from transom.errors import InputError

from transom_hf_attention.patterns import Pattern, pattern_of

__all__ = ["LazyMask", "mask_for_call", "prepare_mask"]


@final
class LazyMask(Tensor):
    """A boolean mask ``[b, 1, s, t]`` that is an `AttentionMask`, and is drawn when somebody computes with it.

    Transformers hands masks to attention through code that looks at shapes, copies and slices. That code sees a tensor;
    a core attention gets what the mask says.

    Args:
        mask: what it says.
        shape: ``(b, 1, s, t)``.
        device: where it is drawn.
    """

    mask: AttentionMask

    @staticmethod
    def __new__(cls, mask: AttentionMask, shape: tuple[int, ...], device: torch.device) -> LazyMask:
        """Make the tensor, which has no memory."""
        made: LazyMask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        return made

    def __init__(self, mask: AttentionMask, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.mask = mask

    def draw(self) -> Tensor:
        """Draw the mask anew, True = may attend."""
        s, t = self.shape[2:]
        visible = self.mask.as_bool(s, t, device=self.device)
        if visible is None:
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        return visible.expand(self.shape).clone()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what it is without drawing it."""
        return f"LazyMask({self.mask}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch go on to the operations that a function consists of.

        Raises:
            InputError: a part of it is written to.
        """
        if func is Tensor.__setitem__:
            raise _written_to("mask[...] = ...")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Compute with the drawn mask.

        Raises:
            InputError: the operation writes to it.
        """
        if func._schema.is_mutable:
            raise _written_to(str(func))
        args, kwargs = tree_map_only(LazyMask, LazyMask.draw, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


def _written_to(how: str) -> InputError:
    return InputError(
        f"{how} writes into an attention mask that was made for Transom.",
        hint="mask.clone() gives one that can be written to",
    )


def prepare_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = hf.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor:
    """Make the mask of a step, once for all layers: a mask function of transformers' ``AttentionMaskInterface``.

    Args:
        batch_size: b.
        q_length: s.
        kv_length: t.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: who may attend to whom, by positions.
        attention_mask: bool ``[b, positions]``, True = a token; `None` = all are.
        device: of the mask.
        others: how transformers' own functions may save work; of these ``use_vmap`` is handed on.

    Returns:
        a `LazyMask` that says causality, windows, packing and padding in words; a drawn mask where the function is not
        known, or while compiling.
    """
    pattern = None if torch.compiler.is_compiling() else pattern_of(mask_function)
    if pattern is None:
        drawn = hf.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,  # type: ignore[arg-type]  # a tensor too, with static caches
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=others.get("use_vmap", False),
            device=device,
        )
        assert drawn is not None, "it may not leave out what a kernel's flag would say"
        return drawn
    device = torch.device(device)
    padding = _padding(attention_mask, kv_length, kv_offset)
    mask = _mask_of(pattern, q_length, kv_length, q_offset, kv_offset, padding, device)
    return LazyMask(mask, (batch_size, 1, q_length, kv_length), device)


def _padding(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """Cut ``[b, positions]`` to the keys at hand ``[b, t]``; `None` when there is no padding among them."""
    if attention_mask is None:
        return None
    completed = hf.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    assert completed is not None
    keys = completed[:, kv_offset : kv_offset + kv_length].bool()
    return None if bool(keys.all()) else keys


def _mask_of(
    pattern: Pattern,
    s: int,
    t: int,
    q_offset: int | Tensor,
    kv_offset: int,
    padding: Tensor | None,
    device: torch.device,
) -> AttentionMask:
    """Put it in Transom's words."""
    mask = AttentionMask(
        causal=pattern.causal, window=pattern.window, query_segments=pattern.segments, key_padding=padding
    )
    counts = pattern.causal or pattern.window is not None
    if not counts or (isinstance(q_offset, int) and q_offset + s == kv_offset + t):
        return mask  # the last query is at the last key, as it is where nothing is said
    return replace(
        mask,
        query_positions=torch.arange(s, device=device) + q_offset,
        key_positions=torch.arange(t, device=device) + kv_offset,
    )


def mask_for_call(
    attention_mask: Any, s: int, t: int, *, is_causal: bool, position_bias: Tensor | None, asked_by: str
) -> AttentionMask:
    """Give what one call of an attention may see.

    Args:
        attention_mask: what `prepare_mask` made, or a caller's own ``[b or 1, n or 1, s, t or more]``: bool, True = may
            attend; or floating, added to the scores. `None` = everything, causally if so.
        s: number of queries.
        t: number of keys.
        is_causal: of the attention.
        position_bias: ``[b or 1, n or 1, s, t]``, added to the scores.
        asked_by: who calls, for errors.

    Raises:
        InputError: the mask is none of these, or there is none where one is needed.
    """
    if attention_mask is None:
        mask = AttentionMask(causal=_causal_by_default(s, t, is_causal, asked_by))
    elif isinstance(attention_mask, LazyMask):
        mask = attention_mask.mask
    else:
        mask = _of_tensor(attention_mask, t, asked_by)
    if position_bias is None:
        return mask
    return replace(mask, bias=position_bias if mask.bias is None else mask.bias + position_bias)


def _causal_by_default(s: int, t: int, is_causal: bool, asked_by: str) -> bool:
    if is_causal and s not in (1, t):
        raise InputError(
            f"a causal attention was called with {s} queries, {t} keys and no mask: which keys are later is not known.",
            asked_by=asked_by,
            hint="pass a mask [b, 1, s, t]",
        )
    return is_causal and s > 1


def _of_tensor(attention_mask: Any, t: int, asked_by: str) -> AttentionMask:
    is_mask = isinstance(attention_mask, Tensor) and attention_mask.dim() == 4
    if is_mask and attention_mask.dtype is torch.bool:
        return AttentionMask(keep=attention_mask[..., :t])
    if is_mask and attention_mask.is_floating_point():
        added = attention_mask[..., :t]
        # Transformers hides a key by the least finite number; -inf says that it is hidden, even from a row without any.
        return AttentionMask(bias=added.masked_fill(added <= torch.finfo(added.dtype).min, float("-inf")))
    what = (
        f"{attention_mask.dtype} {list(attention_mask.shape)}"
        if isinstance(attention_mask, Tensor)
        else type(attention_mask).__name__
    )
    raise InputError(
        f"an attention mask that is {what} cannot be handed to Transom.",
        asked_by=asked_by,
        hint="a boolean [b, 1, s, t], True = may attend, or a floating one that is added to the scores",
    )
