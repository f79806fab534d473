"""From a caller's mask, in which key j is the one at position j, to the mask over what a cache returns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transom.errors import MaskError

if TYPE_CHECKING:
    from transom.transformer.attention_mask import AttentionMask

__all__ = ["mask_of_ring", "mask_of_slots"]

_OF_KEYS = ("key_segments", "key_padding", "key_positions", "keep", "bias")


def mask_of_slots(mask: AttentionMask, positions: Tensor, lengths: Tensor, t: int, aligned: bool) -> AttentionMask:
    """Derive the mask over t slots, slot j holding the key of position j; see `AttentionMask.for_cache`."""
    changes: dict[str, Any] = {
        name: value[..., :t] for name, value in _fields_of_keys(mask).items() if value.shape[-1] > t
    }
    if aligned:
        return replace(mask, **changes) if changes else mask
    if mask.query_positions is None:
        changes["query_positions"] = positions
    if not mask.causal:
        # With causality no query is as late as an unused slot.
        used = torch.arange(t, device=lengths.device) < lengths[:, None]
        padding = changes.get("key_padding", mask.key_padding)
        changes["key_padding"] = used if padding is None else used & padding
    return replace(mask, **changes)


def mask_of_ring(mask: AttentionMask, positions: Tensor, key_positions: Tensor, extent: int) -> AttentionMask:
    """Derive the mask over keys that lie in another order than their positions.

    Args:
        mask: the caller's, or one that was derived for the same keys, which comes back as it is.
        positions: of the queries, ``[s]`` or ``[b, s]``.
        key_positions: of the keys, ``[b, t]``; negative = an empty slot.
        extent: positions that fields of the mask over keys must tell of.

    Raises:
        MaskError: such a field tells of fewer.
    """
    made = mask._memo.get("ring")
    if made is not None and made[0] is key_positions:
        derived: AttentionMask = made[1]
        return derived
    fields = _fields_of_keys(mask)
    changes: dict[str, Any] = {name: _gathered(name, value, key_positions, extent) for name, value in fields.items()}
    if "key_positions" in fields:
        # The caller counts otherwise than the cache: what is empty must be said in another field.
        padding, held = changes.get("key_padding"), key_positions >= 0
        changes["key_padding"] = held if padding is None else held & padding
    else:
        changes["key_positions"] = key_positions
    if mask.query_positions is None:
        changes["query_positions"] = positions
    derived = replace(mask, **changes)
    derived._memo["ring"] = mask._memo["ring"] = (key_positions, derived)
    return derived


def _fields_of_keys(mask: AttentionMask) -> dict[str, Tensor]:
    return {name: value for name in _OF_KEYS if (value := getattr(mask, name)) is not None}


def _gathered(name: str, field: Tensor, key_positions: Tensor, extent: int) -> Tensor:
    """Take of a field over positions ``[..., T]`` those of the keys."""
    if field.shape[-1] < extent:
        raise MaskError(
            f"{name} is for {field.shape[-1]} keys, but there are {extent}.",
            asked_by=f"AttentionMask.{name}",
            field=name,
        )
    if field.dim() == 1:
        return field[key_positions.clamp(min=0)]
    index = key_positions.clamp(min=0).view(len(key_positions), *(1 for _ in field.shape[1:-1]), -1)
    rows = (len(key_positions), *field.shape[1:-1])
    return field.expand(*rows, -1).gather(-1, index.expand(*rows, -1))
