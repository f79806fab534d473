"""What a contender is, and the check that all contenders are one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import reason

__all__ = [
    "BASE",
    "TOLERANCES",
    "Contender",
    "Decoding",
    "DifferentFunctionError",
    "check_results",
    "check_same",
    "compile_anew",
    "gathered",
]

BASE = "monolith"
"""Whom the others are compared with."""

Decoding = Callable[[Tensor, int], Callable[[], Tensor]]
"""From ids ``[b, p]`` and a count to a step that returns so many new tokens ``[b, count]``, chosen greedily."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Of logits relative to the largest one. x-transformers' norms have no epsilon, and bfloat16 has 8 bits."""


class DifferentFunctionError(Exception):
    """A contender computes something else than the others, so that times would say nothing."""


@dataclass(frozen=True)
class Contender:
    """A model that takes part.

    Args:
        name: in tables.
        module: with the common weights.
        logits: ids ``[b, s]`` to logits ``[b, s, v]``; of an encoder-decoder, ids that it reads to hidden states.
        decoding: greedy decoding over a cache.
        compiled_decoding: likewise, with the step of a token compiled.
        loss: ids and labels ``[b, s]`` to the mean loss; `None` = it is not compared.
        graphed_decoding: decoding replayed as CUDA graphs; `None` = it has no way to ask for them.
    """

    name: str
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    decoding: Decoding
    compiled_decoding: Decoding
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    graphed_decoding: Decoding | None = None

    def compiled(self) -> Contender:
        """Compile what is called, as one function each."""
        loss = None if self.loss is None else compile_anew(self.loss)
        return replace(self, logits=compile_anew(self.logits), loss=loss, decoding=self.compiled_decoding)


def compile_anew(function: Callable[..., Tensor], **settings: Any) -> Callable[..., Tensor]:
    """Compile a function when it is first called.

    It is compiled under a code object of its own, for torch limits how often one is compiled.
    """

    def own(*args: Any) -> Tensor:
        return function(*args)

    own.__code__ = own.__code__.replace(co_name=f"own_{id(own)}")
    compiled: list[Callable[..., Tensor]] = []

    def call(*args: Any) -> Tensor:
        if not compiled:
            compiled.append(torch.compile(own, **settings))
        return compiled[0](*args)

    return call


def gathered(makers: dict[str, Callable[[], Contender]]) -> tuple[list[Contender], dict[str, str]]:
    """Make everybody who can take part, and say of the others why not.

    Args:
        makers: by name.

    Raises:
        Exception: of the hand-written model and of Transom, which are always there.
    """
    found: list[Contender] = []
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            found.append(make())
        except Exception as error:  # a library may be absent, or break in any way
            if name == BASE or name.startswith("transom"):
                raise
            absent[name] = reason(error)
    return found, absent


def check_same(contenders: Sequence[Contender], ids: Tensor) -> None:
    """Require that all contenders are the same function, of ids ``[b, s]``.

    Logits are compared, and in training the loss and the norm of all gradients, which does not depend on how weights
    are fused or ordered; in float32 also the tokens that are decoded.

    Raises:
        DifferentFunctionError: one differs from the first.
    """
    found = {contender.name: _results(contender, ids) for contender in contenders}
    tolerance = TOLERANCES[next(contenders[0].module.parameters()).dtype]
    for what in found[contenders[0].name]:
        check_results(what, {name: results[what] for name, results in found.items()}, tolerance)


def check_results(what: str, results: Mapping[str, object], tolerance: float) -> None:
    """Require that all gave the same.

    Args:
        what: for the error.
        results: by contender; those that are no tensors are not compared.
        tolerance: relative to the largest element.

    Raises:
        DifferentFunctionError: one differs from the first.
    """
    tensors = {name: each.double() for name, each in results.items() if isinstance(each, Tensor)}
    reference = next(iter(tensors), "")
    for name, each in tensors.items():
        wanted = tensors[reference]
        if each.shape != wanted.shape:
            raise DifferentFunctionError(f"{what}: {name} gives {list(each.shape)}, {reference} {list(wanted.shape)}")
        error = float((each - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        if not error <= tolerance:  # NaN is not
            raise DifferentFunctionError(f"{what}: {name} differs from {reference} by {error:.1e}")


def _results(contender: Contender, ids: Tensor) -> dict[str, Tensor]:
    contender.module.eval()
    with torch.inference_mode():
        found = {"logits": contender.logits(ids)}
    if next(contender.module.parameters()).dtype == torch.float32:
        found["tokens"] = contender.decoding(ids[:, :4], 4)()
    contender.module.train()
    if contender.loss is not None:
        loss = contender.loss(ids, ids.roll(-1, dims=1))
        torch.autograd.backward(loss)
        norms = [p.grad.double().norm() for p in contender.module.parameters() if p.grad is not None]
        contender.module.zero_grad()
        found |= {"losses": loss.detach(), "gradients": torch.stack(norms).norm()}
    return found
