"""What a layer's keys or values are kept in: one slot a position, as they are or rounded to eight bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.transformer.direct_attributes import buffer

if TYPE_CHECKING:
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.kv_cache import CacheEntry, CacheStep

__all__ = ["Int8Memory", "PlainMemory", "SlotEntry", "copy_rows"]

_LEVELS = 127


def _slots(step: CacheStep) -> Tensor:
    """Give the slot of each token: its position, and for padding the one behind the last."""
    slots: Tensor | None = step.shared.get("slots")
    if slots is None:
        slots = step.shared["slots"] = step.positions.masked_fill(step.positions < 0, step.cache.capacity)
    return slots


def _write(memory: Tensor, step: CacheStep, new: Tensor) -> None:
    """Write ``new [b, s, ...]`` into the slots of ``memory [rows, slots, ...]``."""
    rows = _rows(memory, step)
    if step.aligned:
        s = new.shape[1]
        rows.narrow(1, step.extent - s, s).copy_(new)
        return
    slots = _slots(step)
    if slots.dim() == 1:
        rows.index_copy_(1, slots, new.to(rows.dtype))
    else:
        batch = torch.arange(step.batch_size, device=rows.device)[:, None]
        rows.index_put_((batch, slots), new.to(rows.dtype))


def _rows(memory: Tensor, step: CacheStep) -> Tensor:
    """Give the step's rows; views are not free for a step of one token, which makes two a layer already."""
    return memory if step.batch_size == step.cache.batch_size else memory.narrow(0, 0, step.batch_size)


def _used(memory: Tensor, step: CacheStep) -> Tensor:
    return _rows(memory, step).narrow(1, 0, step.extent)


def copy_rows(memory: Tensor, rows: Tensor, length: int) -> None:
    """Let row i of ``memory [rows, slots, ...]`` be what row ``rows[i]`` was, in its first ``length`` slots."""
    memory[: len(rows), :length] = memory[:, :length].index_select(0, rows)


@final
class PlainMemory(nn.Module):
    """Numbers as they are, but for the dtype.

    Args:
        shape: ``[rows, slots, g, d]``.
        dtype: of what is kept.
        device: of what is kept.
    """

    data: Tensor = buffer()

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> None:
        super().__init__()
        # Made in inference mode, it could be written to in that mode only.
        with torch.inference_mode(False):
            self.register_buffer("data", torch.zeros(shape, dtype=dtype, device=device), persistent=False)

    def exchange(self, step: CacheStep, new: Tensor) -> Tensor:
        """Write ``new [b, s, g, d]``; return all that is held ``[b, t, g, d]`` in its dtype."""
        rows = self.data if step.batch_size == step.cache.batch_size else _rows(self.data, step)
        if step.aligned:
            s = new.shape[1]
            rows.narrow(1, step.extent - s, s).copy_(new.detach() if new.requires_grad else new)
        else:
            _write(self.data, step, new.detach())
        used = rows.narrow(1, 0, step.extent)
        return used if used.dtype == new.dtype else used.to(new.dtype)

    def reorder(self, rows: Tensor, length: int) -> None:
        """Let row i be what row ``rows[i]`` was."""
        copy_rows(self.data, rows, length)


@final
class Int8Memory(nn.Module):
    """Numbers rounded to eight bits, with one float32 scale for each token and head: its largest magnitude over 127.

    Args:
        shape: ``[rows, slots, g, d]``.
        device: of what is kept.
    """

    data: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device | str | None) -> None:
        super().__init__()
        with torch.inference_mode(False):
            self.register_buffer("data", torch.zeros(shape, dtype=torch.int8, device=device), persistent=False)
            scale = torch.zeros(*shape[:-1], 1, dtype=torch.float32, device=device)
            self.register_buffer("scale", scale, persistent=False)

    def exchange(self, step: CacheStep, new: Tensor) -> Tensor:
        """Write ``new [b, s, g, d]``; return all that is held ``[b, t, g, d]`` in its dtype."""
        wide = new.detach().float()
        scale = wide.abs().amax(dim=-1, keepdim=True) / _LEVELS  # [b, s, g, 1]
        _write(self.data, step, (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)).round())
        _write(self.scale, step, scale)
        return (_used(self.data, step) * _used(self.scale, step)).to(new.dtype)

    def reorder(self, rows: Tensor, length: int) -> None:
        """Let row i be what row ``rows[i]`` was."""
        copy_rows(self.data, rows, length)
        copy_rows(self.scale, rows, length)


@final
class SlotEntry(nn.Module):
    """A layer's keys and values, slot j for position j.

    Args:
        key: memory of the keys.
        value: memory of the values.
    """

    window: int | None = None

    def __init__(self, key: PlainMemory | Int8Memory, value: PlainMemory | Int8Memory) -> None:
        super().__init__()
        self.key = key
        self.value = value
        # In a tuple too: a decoding step looks each of them up.
        self._memories = (key, value)

    def update(self, step: CacheStep, key: Tensor, value: Tensor, /) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return all that is held."""
        keys, values = self._memories
        return keys.exchange(step, key), values.exchange(step, value)

    def mask(self, step: CacheStep, mask: AttentionMask, /) -> AttentionMask:
        """Derive the mask over the slots."""
        return mask.for_cache(step.positions, step.lengths, step.extent, aligned=step.aligned)

    def commit(self, step: CacheStep, /) -> None:
        """Do nothing: `update` wrote everything."""

    def reorder(self, rows: Tensor, length: int, /) -> None:
        """Let row i hold what row ``rows[i]`` holds."""
        self.key.reorder(rows, length)
        self.value.reorder(rows, length)


if TYPE_CHECKING:

    def _is_an_entry(entry: SlotEntry) -> CacheEntry:
        return entry
