"""Cases of the self_attention slot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from transom.slots.attention import AttentionRequest
from transom.testing.architectures.mixer import GrowingCache, Mixer
from transom.testing.architectures.mixing import mixing_cases
from transom.testing.case import Case
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["cases"]

_H = 64


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a self-attention."""
    mixer = Mixer(
        request=_request,
        arguments=lambda number: {"layer_number": number},
        tokens=lambda b, s: torch.randn(b, s, _H, dtype=torch.float64),
        call=_call,
        decode=_decode,
        width=_H,
    )
    yield from mixing_cases(subject, mixer)


def _request(subject: Subject, config: TransformerConfig, masks: frozenset[str], layer_number: int) -> AttentionRequest:
    context = subject.context(config.params_dtype)
    return AttentionRequest(context=context, config=config, masks=masks, layer_number=layer_number)


def _call(module: nn.Module, tokens: Tensor, *, mask: AttentionMask, positions: Tensor | None = None) -> Tensor:
    output, bias = module(tokens, mask=mask, positions=positions)
    assert isinstance(output, Tensor)
    return output if bias is None else output + bias


def _decode(module: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    cache, outputs = GrowingCache(), []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, tokens.shape[1]))]:
        positions = torch.arange(start, end, device=tokens.device)
        output, bias = module(tokens[:, start:end], mask=AttentionMask(causal=True), positions=positions, cache=cache)
        outputs.append(output if bias is None else output + bias)
    return torch.cat(outputs, dim=1)
