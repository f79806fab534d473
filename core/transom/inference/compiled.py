"""The step of one token as one compiled graph for each size of batch and cache, kept with its model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from transom.inference.settings import Compile
from transom.inference.single_row import SingleRowProducts

__all__ = [
    "OF_ONE_ROW",
    "Step",
    "compiled_step",
    "decode_step",
    "rounded_capacity",
    "write_step",
]

_LEAST = 64

Step = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
"""From a model, ids ``[b, s]``, positions, and what may be read ``[b, t]``, to logits ``[b, v]`` of the last tokens."""

_steps: WeakKeyDictionary[nn.Module, dict[Hashable, Step]] = WeakKeyDictionary()


def decode_step(model: Any, ids: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
    """Run a decoder over its caches."""
    logits: Tensor = model(ids, input_pos=positions)  # [b, s] -> [b, s, v]
    return logits[:, -1]


def write_step(model: Any, ids: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
    """Run the decoder of an encoder-decoder over its caches, in which what it reads is kept too."""
    logits: Tensor = model.decode(ids, encoder_decoder_attn_mask=keep, input_pos=positions)  # [b, s] -> [b, s, v]
    return logits[:, -1]


def _decode_row(model: Any, ids: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
    with SingleRowProducts():
        return decode_step(model, ids, positions, keep)


def _write_row(model: Any, ids: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
    with SingleRowProducts():
        return write_step(model, ids, positions, keep)


OF_ONE_ROW: Mapping[Step, Step] = {decode_step: _decode_row, write_step: _write_row}
"""The same for a batch of one row, where torch's own compiler makes loops for a CPU."""


def compiled_step(step: Step, model: Any, compile: Compile, sizes: Hashable) -> Step:  # noqa: A002 - the word of torch
    """Return a step compiled for a model and sizes; the same one as long as the model lives.

    Args:
        step: `decode_step` or `write_step`, or one of `OF_ONE_ROW`.
        model: what it is called with.
        compile: True, or a function that compiles.
        sizes: what decides on the graph, so that each function has one and never recompiles.
    """
    known = _steps.setdefault(model, {})
    key = (step, compile, sizes, model.cache.batch_size, model.cache.capacity)
    if key not in known:
        assert isinstance(step, FunctionType)
        # Compilations belong to a code object, and so does the limit of their number: this one has its own.
        own: Step = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
        known[key] = compile(own) if callable(compile) else torch.compile(own, fullgraph=True, dynamic=False)
    return known[key]


def rounded_capacity(capacity: int | None, most: int | None) -> int | None:
    """Round a capacity up to a power of two, so that sequences of about the same length share a graph.

    Args:
        capacity: what is needed; `None` = the most.
        most: that the model can have; `None` = unknown.

    Example:
        >>> rounded_capacity(70, 2048), rounded_capacity(1500, 2000), rounded_capacity(None, 2000)
        (128, 2000, None)
    """
    if capacity is None:
        return None
    rounded = max(_LEAST, 1 << (capacity - 1).bit_length())
    return rounded if most is None else max(min(rounded, most), capacity)
