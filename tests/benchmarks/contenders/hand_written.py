"""The hand-written models as contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.contenders.contender import BASE, Contender, Decoding, compile_anew
from benchmarks.monolith import Monolith, Shape
from benchmarks.monolith_t5 import MonolithT5, T5Shape

__all__ = ["monolith", "monolith_t5"]

Call = Callable[..., Tensor]


def monolith(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    """The Llama; compiled as one would do it naively, with `torch.compile` around the model."""
    model = Monolith(shape).load(weights).to(device, dtype)
    return Contender(
        name=BASE,
        module=model,
        logits=model,
        loss=lambda ids, labels: model(ids, labels),
        decoding=_decoding(model, model),
        compiled_decoding=_decoding(model, compile_anew(model)),
    )


def _decoding(model: Monolith, call: Call) -> Decoding:
    def decoding(prompt: Tensor, count: int) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def step() -> Tensor:
            model.setup_caches(len(prompt), prompt.shape[1] + count)
            tokens = [model(prompt, last_only=True)[:, -1:].argmax(-1)]
            for start in range(prompt.shape[1], prompt.shape[1] + count - 1):
                tokens.append(call(tokens[-1], None, start)[:, -1:].argmax(-1))
            model.caches = None
            return torch.cat(tokens, dim=1)

        return step

    return decoding


def monolith_t5(shape: T5Shape, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    """The T5."""
    model = MonolithT5(shape).load(weights).to(device, dtype)
    return Contender(
        name=BASE,
        module=model,
        logits=model.encode,
        decoding=_writing(model, model.decode),
        compiled_decoding=_writing(model, compile_anew(model.decode)),
    )


def _writing(model: MonolithT5, call: Call) -> Decoding:
    def decoding(read: Tensor, count: int) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def step() -> Tensor:
            model.setup_caches(model.encode(read), count)
            tokens = [torch.zeros_like(read[:, :1])]
            for start in range(count):
                tokens.append(call(tokens[-1], start)[:, -1:].argmax(-1))
            model.caches = None
            return torch.cat(tokens[1:], dim=1)

        return step

    return decoding
