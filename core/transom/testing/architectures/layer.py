"""Cases of the layer slot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.layer import LayerRequest
from transom.testing.architectures.mixer import GrowingCache, Mixer
from transom.testing.architectures.mixing import mixing_cases
from transom.testing.architectures.properties import expect_depends, expect_gradients, expect_same
from transom.testing.architectures.variants import contract_case
from transom.testing.case import Case, ConformanceError
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["cases"]

_H = 64


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a layer."""
    mixer = Mixer(
        request=partial(_request, False),
        arguments=lambda number: {"layer_number": number},
        tokens=lambda b, s: torch.randn(b, s, _H, dtype=torch.float64),
        call=_call,
        decode=_decode,
        width=_H,
    )
    yield from mixing_cases(subject, mixer)
    if "cross_attention" in subject.features:
        reader = replace(mixer, request=partial(_request, True))
        shows = "it reads the context, but for its padding, and hands it on"
        yield from contract_case(subject, "context", shows, _check_context, reader)


def _request(
    cross: bool, subject: Subject, config: TransformerConfig, masks: frozenset[str], layer_number: int
) -> LayerRequest:
    return LayerRequest(
        context=subject.context(config.params_dtype),
        features=frozenset({"cross_attention"} if cross else ()),
        config=config,
        masks=masks,
        layer_number=layer_number,
        cross_attention=cross,
    )


def _call(module: nn.Module, tokens: Tensor, **arguments: Any) -> Tensor:
    hidden: Tensor = module(tokens, **arguments)[0]
    return hidden


def _decode(module: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    cache, outputs = GrowingCache(), []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, tokens.shape[1]))]:
        positions = torch.arange(start, end, device=tokens.device)
        mask = AttentionMask(causal=True)
        outputs.append(_call(module, tokens[:, start:end], mask=mask, positions=positions, cache=cache))
    return torch.cat(outputs, dim=1)


def _check_context(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal padding")
    tokens, context = mixer.input(subject, dtype, 2, 6), mixer.input(subject, dtype, 2, 4)
    padding = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], device=subject.device).bool()

    def call(read: Tensor) -> Tensor:
        masks = {"mask": AttentionMask(causal=True), "context_mask": AttentionMask(key_padding=padding)}
        hidden, handed_on = module(tokens, context=read, **masks)
        if handed_on is None or not torch.equal(handed_on, read):
            raise ConformanceError("the context that it returns is not the one that it was given")
        assert isinstance(hidden, Tensor)
        return hidden

    output = call(context)
    expect_same(call(mixer.changed(context, ~padding)), output, dtype, "outputs beside a change of padding")
    expect_depends(call(mixer.changed(context, padding)), output, "the context")
    if subject.trains:
        (output.double() * torch.randn_like(output.double())).sum().backward()  # type: ignore[no-untyped-call]
        expect_gradients(module, {"the input": tokens, "the context": context})
