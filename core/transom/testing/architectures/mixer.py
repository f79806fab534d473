"""What self-attentions, layers and models have in common: they map tokens to tokens, and tokens see each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from transom.slots.request import ArchitectureRequest
from transom.testing.agreement import shake_parameters
from transom.testing.architectures.variants import serving, variant
from transom.testing.assembly import assemble
from transom.testing.exercise import Exercise
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["GrowingCache", "Mixer", "RequestOf", "mixer_exercise"]


class RequestOf(Protocol):
    """Makes a slot's request."""

    def __call__(
        self, subject: Subject, config: TransformerConfig, masks: frozenset[str], layer_number: int
    ) -> ArchitectureRequest:
        """Make it, in the subject's context with the config's dtype."""
        ...


@dataclass(frozen=True)
class Mixer:
    """How the implementations of one slot are built and called.

    Args:
        request: makes the request.
        arguments: of the builder, for a layer's number.
        tokens: makes the input of b rows of s tokens on the CPU, floating in float64.
        call: calls the module with the input, a mask and positions; ``[b, s, ...]``.
        decode: runs the first tokens at once and the others one by one over a cache; ``[b, s, ...]``.
        result_dtype: of the output; `None` = the module's.
        width: of the output.
    """

    request: RequestOf
    arguments: Callable[[int], dict[str, Any]]
    tokens: Callable[[int, int], Tensor]
    call: Callable[..., Tensor]
    decode: Callable[[nn.Module, Tensor, int], Tensor]
    width: int
    result_dtype: torch.dtype | None = None

    def make(
        self, subject: Subject, kind: str, dtype: str, masks: str = "causal", layer_number: int = 1, **config: Any
    ) -> nn.Module:
        """Make a module of a variant, with random numbers in its parameters.

        Args:
            subject: what is tested.
            kind: the variant.
            dtype: of parameters.
            masks: kinds that it will be given, as words.
            layer_number: counted from 1.
            config: other fields of the config.
        """
        made = variant(kind, dtype, **config)
        request = self.request(subject, made, frozenset(masks.split()), layer_number)
        module = assemble(subject, request, **self.arguments(layer_number))
        shake_parameters(module)
        return module

    def input(self, subject: Subject, dtype: str, b: int, s: int) -> Tensor:
        """Make an input on the subject's device, with a gradient where it can have one."""
        tokens = self.tokens(b, s).to(subject.device)
        if not tokens.is_floating_point():
            return tokens
        return tokens.to(getattr(torch, dtype)).requires_grad_(subject.trains)

    def changed(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Give the input with other numbers at some tokens.

        Args:
            tokens: ``[b, s, ...]``.
            where: bool, ``[s]`` or ``[b, s]``.
        """
        others = (tokens + 1) % 17 if not tokens.is_floating_point() else tokens.detach() + torch.randn_like(tokens)
        where = where.to(tokens.device).expand(tokens.shape[:2])
        return torch.where(where.reshape(*where.shape, *(1 for _ in tokens.shape[2:])), others, tokens.detach())


class GrowingCache:
    """The plainest cache of one layer: it keeps everything, in the order in which it came."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Keep keys and values ``[b, s, g, d]``, and give all that are held, with their number in each row."""
        if self.held is not None:
            key, value = torch.cat([self.held[0], key], dim=1), torch.cat([self.held[1], value], dim=1)
        self.held, self.positions = (key, value), positions
        return key, value, self._lengths(key)

    def mask(self, mask: AttentionMask | None, /) -> AttentionMask:
        """Derive the mask over what is held; key j is the one at position j."""
        assert self.held is not None, "update() comes first"
        key = self.held[0]
        return (AttentionMask() if mask is None else mask).for_cache(self.positions, self._lengths(key), key.shape[1])

    def _lengths(self, key: Tensor) -> Tensor:
        return torch.full((key.shape[0],), key.shape[1], device=key.device)


def mixer_exercise(subject: Subject, mixer: Mixer) -> Exercise:
    """Make the exercise of the cases that hold in every slot: a causal call of the first variant that is served."""

    def make(layer_number: int, device: str | None = None) -> nn.Module:
        def request_of(kind: str) -> ArchitectureRequest:
            config = variant(kind, subject.dtype)
            return mixer.request(subject, config, frozenset({"causal"}), layer_number)

        request = serving(subject, request_of)
        return assemble(subject, request, on=device, **mixer.arguments(layer_number))

    def run(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"output": mixer.call(module, inputs["tokens"], mask=AttentionMask(causal=True))}

    return Exercise(make, lambda: {"tokens": mixer.tokens(2, 6)}, run, fill=shake_parameters)
