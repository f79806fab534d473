"""Who may attend to whom in T5: the forms in which callers say it, and the one in which layers hear it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from transom.errors import MaskError
from transom.transformer.attention_mask import AttentionMask

if TYPE_CHECKING:
    from transom.transformer.packed_seq_params import PackedSeqParams
    from transom.transformer.position_bias import RelativePositionBias

__all__ = [
    "LOOKING_BACK",
    "Mask",
    "attention_mask_of",
    "check_declared",
    "mask_for",
    "t5_extended_attention_mask",
    "t5_position_ids",
    "with_position_bias",
]

LOOKING_BACK = frozenset({"causal", "bottom_right", "positions", "prefix"})
"""Kinds of mask that only a self-attention that looks back is given: not an encoder's, and not a cross-attention."""

Mask: TypeAlias = Tensor | AttentionMask | None
"""Who may attend to whom, as callers say it."""


def t5_extended_attention_mask(attention_mask_list: Sequence[Tensor]) -> list[Tensor]:
    """Give masks an axis for the heads.

    Args:
        attention_mask_list: bool ``[b, s, t]`` each, True = may attend.

    Returns:
        the same masks as ``[b, 1, s, t]``.

    Raises:
        MaskError: a mask does not have three axes.

    Example:
        >>> extended, = t5_extended_attention_mask([torch.ones(2, 3, 5, dtype=torch.bool)])
        >>> extended.shape
        torch.Size([2, 1, 3, 5])
    """
    for number, mask in enumerate(attention_mask_list):
        if mask.dim() != 3:
            raise MaskError(
                f"mask {number} has shape {list(mask.shape)}; [b, s, t] is needed.",
                asked_by="t5_extended_attention_mask",
                hint="one axis for rows, one for what asks and one for what is read",
            )
    return [mask.unsqueeze(1) for mask in attention_mask_list]


def t5_position_ids(token_ids: Tensor) -> Tensor:
    """Count positions from 0.

    Args:
        token_ids: ids ``[b, s]``.

    Returns:
        int64 ``[b, s]``, each row 0 ... s-1.

    Example:
        >>> t5_position_ids(torch.tensor([[7, 7, 7]]))
        tensor([[0, 1, 2]])
    """
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)
    return positions.expand(token_ids.shape)


def attention_mask_of(
    given: Mask, name: str, shape: tuple[int | None, int | None, int | None], *, causal: bool
) -> AttentionMask:
    """Make the mask object of what a caller gave.

    Args:
        given: bool ``[b, t]``, ``[b, s, t]`` or ``[b or 1, n or 1, s, t]``, True = may attend; or the object itself.
        name: of the argument, for errors.
        shape: (b, s, t), with `None` where it is not known.
        causal: what is said where nothing is, and beside padding: an explicit mask says itself who sees whom.

    Returns:
        the mask.

    Raises:
        MaskError: a tensor of another dtype or shape.
    """
    if given is None:
        return AttentionMask(causal=causal)
    if isinstance(given, AttentionMask):
        return given
    if given.dim() not in (2, 3, 4):
        raise _misshapen(given, name, shape)
    rows, queries, keys = given.shape[0], 1 if given.dim() == 2 else given.shape[-2], given.shape[-1]
    b, s, t = shape
    fits = rows in (b, 1) if given.dim() == 4 else rows == b
    if not (b is None or fits) or (given.dim() > 2 and s not in (None, queries)) or t not in (None, keys):
        raise _misshapen(given, name, shape)
    if given.dtype is not torch.bool:
        raise MaskError(
            f"{name} must be a tensor of bool dtype, not {given.dtype}.",
            asked_by=f"T5Model({name}=...)",
            hint="True = may attend; for 1 = keep, pass mask.bool()",
            field=name,
        )
    if given.dim() == 2:
        return AttentionMask(causal=causal, key_padding=given)
    return AttentionMask(keep=given.unsqueeze(1) if given.dim() == 3 else given)


def _misshapen(given: Tensor, name: str, shape: tuple[int | None, ...]) -> MaskError:
    b, s, t = ("?" if size is None else size for size in shape)
    return MaskError(
        f"{name} has shape {list(given.shape)}; [{b}, {t}], [{b}, {s}, {t}] or [{b}, 1, {s}, {t}] is needed.",
        asked_by=f"T5Model({name}=...)",
        hint="[b, t] says which tokens are no padding, the others who may attend to whom",
        field=name,
    )


def check_declared(mask: AttentionMask, name: str, declared: frozenset[str]) -> None:
    """Refuse a mask of a kind that the attentions were not asked for.

    Args:
        mask: the caller's.
        name: of the argument, for errors.
        declared: kinds that the attentions were asked for.

    Raises:
        MaskError: with the kinds that are missing.
    """
    undeclared = sorted(mask.features - declared)
    if undeclared:
        kinds = ", ".join(undeclared)
        raise MaskError(
            f"the model was not built for masks of kind {kinds}.",
            asked_by=f"T5Model({name}=...)",
            available=sorted(declared),
            hint=f"add `masks: [{kinds}]` to the spec: every core attention is then checked for it",
        )


def mask_for(
    name: str,
    given: Mask,
    shape: tuple[int | None, int | None, int | None],
    declared: frozenset[str],
    packed: PackedSeqParams | None = None,
) -> AttentionMask:
    """Make the mask of one of the three kinds of attention.

    Args:
        name: of the argument: ``"encoder_attn_mask"``, ``"decoder_attn_mask"`` or ``"encoder_decoder_attn_mask"``.
        given: as for `attention_mask_of`, like the following.
        shape: (b, s, t).
        declared: kinds that the model was built for.
        packed: where several sequences of a row begin and end; who is in another sequence is hidden.

    Returns:
        the mask.

    Raises:
        MaskError: a tensor of another dtype or shape, or a kind that is not declared.
    """
    is_decoder = name == "decoder_attn_mask"
    mask = attention_mask_of(given, name, shape, causal=is_decoder)
    if packed is not None:
        mask = _with_segments(_segments(packed, name, shape), mask)
    check_declared(mask, name, declared if is_decoder else declared - LOOKING_BACK)
    return mask


def with_position_bias(
    mask: AttentionMask,
    bias: RelativePositionBias | None,
    length: int,
    positions: Tensor | None,
    capacity: int | None = None,
) -> AttentionMask:
    """Add what tells positions to the scores.

    Args:
        mask: of a self-attention.
        bias: makes the terms; `None` = there are none.
        length: s, number of queries.
        positions: of the queries, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
        capacity: number of keys, at positions 0, 1 ..., where they are a cache's; `None` = the queries' own.
    """
    if bias is None:
        return mask
    keys = positions if capacity is None else None
    terms: Tensor = bias(length, capacity or length, query_positions=positions, key_positions=keys)  # [b or 1, n, s, t]
    return replace(mask, bias=terms if mask.bias is None else mask.bias + terms)


def _segments(packed: PackedSeqParams, name: str, shape: tuple[int | None, ...]) -> AttentionMask:
    _, s, t = shape
    assert s is not None, "packed rows are not cached"
    make, read, longest = AttentionMask.from_cumulative_lengths, packed.cu_seqlens_kv, packed.max_seqlen_kv
    if name == "encoder_attn_mask":
        return make(read, s, max_length=longest)
    written, longest_written = packed.cu_seqlens_q, packed.max_seqlen_q
    if name == "decoder_attn_mask":
        return make(written, s, max_length=longest_written, causal=True)
    return make(written, s, key_cumulative=read, key_length=t, max_length=longest_written, key_max_length=longest)


def _with_segments(segments: AttentionMask, mask: AttentionMask) -> AttentionMask:
    """Combine: a key is visible when both allow it."""
    if not mask.features - {"causal"}:
        return segments  # as it is, for kernels that take cumulative lengths
    return replace(mask, query_segments=segments.query_segments, key_segments=segments.key_segments)
