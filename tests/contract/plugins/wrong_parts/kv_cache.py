"""Key/value caches: a simple one, and what differs from it."""

from __future__ import annotations

import torch
from torch import nn
from transom import AttentionMask
from transom.errors import CacheError


class Right(nn.Module):
    """Slot j of a row holds position j; the last slot takes padding."""

    def __init__(self, config, *, request, batch_size, capacity, dtype=None, device=None):
        super().__init__()
        dtype = dtype or getattr(torch, request.context.dtype)
        sizes, layers = (request.head_size, request.value_head_size), len(request.windows)
        room = (layers, batch_size, capacity + 1, request.num_query_groups)
        self.memory = [torch.zeros(*room, size, dtype=dtype, device=device) for size in sizes]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.batch_size, self.capacity = batch_size, capacity

    def begin(self, positions, batch_size, /):
        rows = positions.expand(batch_size, -1)
        self.check(batch_size, positions.shape[-1])
        if not torch.compiler.is_compiling():
            self.check(batch_size, int(positions.max()) + 1)
        self.cut(rows)
        return Step(self, rows)

    def cut(self, rows):
        first = rows.masked_fill(rows < 0, self.capacity).amin(dim=1)
        self.lengths[: len(rows)] = self.lengths[: len(rows)].minimum(first)

    def check(self, batch_size, length, /):
        if batch_size > self.batch_size or length > self.capacity:
            raise CacheError("too much")

    def reserve(self, batch_size, length, /):
        self.check(batch_size, length)

    def layer(self, number, /):
        return Alone(self, number)

    def slots(self, rows):
        return rows.masked_fill(rows < 0, self.capacity)

    def write(self, number, rows, tensors):
        at = torch.arange(len(rows), device=rows.device)[:, None], self.slots(rows)
        for memory, tensor in zip(self.memory, tensors, strict=True):
            memory[number][at] = tensor.to(memory.dtype)

    def read(self, number, rows, dtype):
        return [memory[number, : len(rows), : self.capacity].to(dtype) for memory in self.memory]

    def mask(self, mask, rows, number):
        used = torch.arange(self.capacity, device=rows.device) < self.after(rows)[:, None]
        return AttentionMask(causal=mask is not None and mask.causal, query_positions=rows, key_padding=used)

    def after(self, rows):
        return self.lengths[: len(rows)].maximum(rows.amax(dim=1) + 1)

    def commit(self, rows):
        self.lengths[: len(rows)] = self.after(rows)

    def rewind(self, length, /):
        self.lengths.clamp_(max=length)

    def reorder(self, rows, /):
        for memory in (*self.memory, self.lengths[None]):
            memory[:, : len(rows)] = memory[:, rows]

    def reset(self):
        self.lengths.zero_()


class Step:
    def __init__(self, cache, rows):
        self.cache, self.rows = cache, rows

    def layer(self, number, /):
        return Entry(self, number)

    def mask(self, mask, number=0, /):
        return self.cache.mask(mask, self.rows, number)

    def commit(self):
        self.cache.commit(self.rows)


class Entry:
    def __init__(self, step, number):
        self.step, self.number = step, number

    def update(self, key, value, positions, /):
        cache, rows = self.step.cache, self.step.rows
        cache.write(self.number, rows, (key, value))
        return *cache.read(self.number, rows, key.dtype), cache.after(rows)

    def mask(self, mask, /):
        return self.step.mask(mask, self.number)


class Alone:
    def __init__(self, cache, number):
        self.cache, self.number = cache, number

    def update(self, key, value, positions, /):
        self.step = self.cache.begin(positions, len(key))
        found = self.step.layer(self.number).update(key, value, positions)
        self.step.commit()
        return found

    def mask(self, mask, /):
        return self.step.mask(mask, self.number)


class SlotOffByOne(Right):
    """Writes each token where the next one goes."""

    def slots(self, rows):
        return (super().slots(rows) + 1).clamp(max=self.capacity)


class PaddingKept(Right):
    """Writes padding over the first position."""

    def slots(self, rows):
        return rows.clamp(min=0)


class FirstRowForAll(Right):
    """Takes the first row's positions for all rows'."""

    def slots(self, rows):
        return super().slots(rows[:1].expand_as(rows))


class UnusedSeen(Right):
    def mask(self, mask, rows, number):
        return AttentionMask(causal=mask is not None and mask.causal, query_positions=rows)


class CausalOnly(Right):
    def mask(self, mask, rows, number):
        return AttentionMask(causal=True, query_positions=rows)


class TopLeft(Right):
    """Aligns queries with the first keys."""

    def mask(self, mask, rows, number):
        return super().mask(mask, torch.arange(rows.shape[1], device=rows.device).expand_as(rows), number)


class LayersShared(Right):
    """Keeps one layer's keys and values for all."""

    def write(self, number, rows, tensors):
        super().write(0, rows, tensors)

    def read(self, number, rows, dtype):
        return super().read(min(number, len(rows) - 2), rows, dtype)


class NotRewound(Right):
    """Counts positions that are written anew as if those behind were still there."""

    def cut(self, rows):
        pass


class CommitsAtOnce(Right):
    def write(self, number, rows, tensors):
        super().write(number, rows, tensors)
        self.commit(rows)


class ResetForgotten(Right):
    def reset(self):
        pass


class ReorderForgotten(Right):
    def reorder(self, rows, /):
        pass


class ReordersKeysAlone(Right):
    def reorder(self, rows, /):
        self.memory[0][:, : len(rows)] = self.memory[0][:, rows]
        self.lengths[: len(rows)] = self.lengths[rows]


class WritesBeforeItRefuses(Right):
    def begin(self, positions, batch_size, /):
        self.lengths[:] = self.lengths.maximum(positions.max() + 1)
        return super().begin(positions, batch_size)


class NeverFull(Right):
    def check(self, batch_size, length, /):
        pass


class ItsOwnDtype(Right):
    def read(self, number, rows, dtype):
        return super().read(number, rows, self.memory[0].dtype)


class ReadsOnTheHost(Right):
    """Returns the used part alone, which needs a number on the host."""

    def read(self, number, rows, dtype):
        end = int(self.after(rows).max())
        return [each[:, :end] for each in super().read(number, rows, dtype)]

    def mask(self, mask, rows, number):
        full, end = super().mask(mask, rows, number), int(self.after(rows).max())
        return AttentionMask(causal=full.causal, query_positions=rows, key_padding=full.key_padding[:, :end])
