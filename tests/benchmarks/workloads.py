"""What is run: forward, training step, prefill and decoding, each as one repetition for each contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from contenders import Contender, Step
from monolith import Monolith, Shape
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How large the workloads are.

    Args:
        batch: rows of forward and training step.
        length: tokens of each.
        prompt: tokens that decoding begins with.
        new_tokens: that it adds.
    """

    batch: int = 2
    length: int = 512
    prompt: int = 64
    new_tokens: int = 32


Workload = Callable[[Sequence[Contender], Shape, Sizes], Mapping[str, Step]]


def forward(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> dict[str, Step]:
    """Logits of a batch, without gradients, in evaluation mode."""
    ids = _ids(shape, sizes.batch, sizes.length)
    return {each.name: _inferring(each, ids) for each in contenders}


def prefill(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> dict[str, Step]:
    """One row of four times the length: what a long prompt takes."""
    ids = _ids(shape, 1, min(4 * sizes.length, shape.length))
    return {each.name: _inferring(each, ids) for each in contenders}


def training_step(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> dict[str, Step]:
    """Loss, gradients and a step of AdamW."""
    ids = _ids(shape, sizes.batch, sizes.length)
    return {each.name: _training(each, ids) for each in contenders}


def decode(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> dict[str, Step]:
    """Greedy tokens of one row over a cache, its prompt included."""
    return _decoding(contenders, shape, sizes, 1) | {"weights read": _weights_read(contenders, shape, sizes)}


def decode_eight(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> dict[str, Step]:
    """Greedy tokens of eight rows over a cache, their prompts included."""
    return _decoding(contenders, shape, sizes, 8)


WORKLOADS: Mapping[str, Workload] = {
    "forward": forward,
    "training step": training_step,
    "prefill": prefill,
    "decode, 1 row": decode,
    "decode, 8 rows": decode_eight,
}


def _ids(shape: Shape, b: int, s: int) -> Tensor:
    return torch.randint(0, shape.vocab, (b, s), generator=torch.Generator().manual_seed(0))


def _inferring(contender: Contender, ids: Tensor) -> Step:
    def step() -> None:
        contender.module.eval()
        with torch.inference_mode():
            contender.logits(ids)
        contender.module.train()

    return step


def _training(contender: Contender, ids: Tensor) -> Step:
    labels = ids.roll(-1, dims=1)
    optimizer: torch.optim.Optimizer | None = None

    def step() -> None:
        nonlocal optimizer
        if optimizer is None:
            optimizer = torch.optim.AdamW(contender.module.parameters(), lr=1e-5)
        contender.loss(ids, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(contenders: Sequence[Contender], shape: Shape, sizes: Sizes, rows: int) -> dict[str, Step]:
    prompt = _ids(shape, rows, sizes.prompt)
    return {each.name: each.decoding(prompt, sizes.new_tokens) for each in contenders if each.decoding is not None}


def _weights_read(contenders: Sequence[Contender], shape: Shape, sizes: Sizes) -> Step:
    """Make the bare sequence of matrix products of one token, once for each: less cannot be done."""
    (model,) = (each.module for each in contenders if isinstance(each.module, Monolith))
    weights = [
        w
        for block in model.blocks
        for w in (block.qkv.weight, block.out.weight, block.gate_up.weight, block.down.weight)
    ]
    weights.append(model.head.weight)
    inputs = [torch.ones(1, weight.shape[1], dtype=weight.dtype) for weight in weights]

    def step() -> None:
        with torch.inference_mode():
            for _ in range(sizes.new_tokens):
                for x, weight in zip(inputs, weights, strict=True):
                    F.linear(x, weight)

    return step
