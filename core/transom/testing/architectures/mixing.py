"""Cases of everything that lets tokens see each other: self-attentions, layers, models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from transom.testing.architectures.mixer import Mixer, mixer_exercise
from transom.testing.architectures.properties import (
    expect_depends,
    expect_finite,
    expect_gradients,
    expect_same,
    expect_shape,
)
from transom.testing.architectures.variants import contract_case
from transom.testing.case import Case, ConformanceError
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask

__all__ = ["mixing_cases"]

_B, _S = 2, 6


def mixing_cases(subject: Subject, mixer: Mixer) -> Iterator[Case]:
    """Make the cases of a slot whose implementations let tokens see each other.

    Args:
        subject: what is tested.
        mixer: how it is built and called.
    """

    def cases(name: str, shows: str, check: object, *, dtypes: bool = False) -> Iterator[Case]:
        assert callable(check)
        return contract_case(subject, name, shows, check, mixer, dtypes=dtypes)

    yield from cases("shapes", "outputs have the shape and dtype that they should", _check_shapes, dtypes=True)
    yield from cases("causal", "no token's output depends on a later token", _check_causal)
    yield from cases("rows", "no row's output depends on another row", _check_rows)
    yield from cases("positions", "positions 0 ... s-1 are what is taken without any", _check_positions)
    yield from cases("padding", "no output depends on a token that is padding", _check_padding)
    yield from cases("blind", "a query that sees nothing gives finite numbers and gradients", _check_blind)
    yield from cases("packed", "packed sequences give what each gives alone", _check_packed)
    yield from cases("cache", "decoding token by token gives what the whole forward gives", _check_cache)
    yield from cases("dropout_in_eval", "nothing is dropped in evaluation", _check_eval)
    if subject.declares_training:
        yield from cases(
            "gradients", "a gradient reaches every parameter and the input", subject.in_training(_check_gradients)
        )
        yield from cases("dropout", "dropout follows the random state in training", subject.in_training(_check_dropout))
    yield from module_cases(subject, mixer_exercise(subject, mixer))


def _check_shapes(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype)
    for b, s in ((_B, _S), (1, 1), (3, 7)):
        tokens = mixer.input(subject, dtype, b, s)
        before = tokens.detach().clone()
        output = mixer.call(module, tokens, mask=AttentionMask(causal=True))
        expect_shape(output, (b, s, mixer.width), mixer.result_dtype or getattr(torch, dtype))
        if not torch.equal(tokens.detach(), before):
            raise ConformanceError("it wrote to its input")


def _check_causal(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    tokens = mixer.input(subject, dtype, _B, _S)
    output = mixer.call(module, tokens, mask=AttentionMask(causal=True))
    for first in range(1, _S):
        changed = mixer.changed(tokens, torch.arange(_S) >= first)
        other = mixer.call(module, changed, mask=AttentionMask(causal=True))
        expect_same(other[:, :first], output[:, :first], dtype, f"outputs before token {first}, which changed,")
        expect_depends(other[:, first], output[:, first], "the token itself")


def _check_rows(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    tokens = mixer.input(subject, dtype, 3, _S)
    output = mixer.call(module, tokens, mask=AttentionMask(causal=True))
    changed = mixer.changed(tokens, torch.tensor([[False], [True], [False]]).expand(3, _S))
    other = mixer.call(module, changed, mask=AttentionMask(causal=True))
    expect_same(other[::2], output[::2], dtype, "rows beside one that changed")


def _check_positions(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    tokens = mixer.input(subject, dtype, _B, _S)
    output = mixer.call(module, tokens, mask=AttentionMask(causal=True))
    positions = torch.arange(_S, device=subject.device)
    for given in (positions, positions.expand(_B, _S)):
        other = mixer.call(module, tokens, mask=AttentionMask(causal=True), positions=given)
        expect_same(other, output, dtype, f"the output with positions of shape {list(given.shape)}")


_PADDINGS = {
    "on the left": [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
    "on the right": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]],
    "in the middle": [[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]],
}


def _check_padding(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal padding").eval()
    tokens = mixer.input(subject, dtype, _B, _S)
    for where, real in _PADDINGS.items():
        padding = torch.tensor(real, device=subject.device).bool()
        output, other = (
            mixer.call(module, each, mask=AttentionMask(causal=True, key_padding=padding))
            for each in (tokens, mixer.changed(tokens, ~padding))
        )
        expect_same(other[padding], output[padding], dtype, f"outputs beside padding {where} that changed")
        if where == "on the right":
            alone = mixer.call(module, tokens[:1, :4], mask=AttentionMask(causal=True))
            expect_same(output[:1, :4], alone, dtype, "outputs before padding on the right, against those without it,")


def _check_blind(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal padding")
    tokens = mixer.input(subject, dtype, _B, _S)
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], device=subject.device).bool()
    output = mixer.call(module, tokens, mask=AttentionMask(causal=True, key_padding=padding))
    expect_finite(output, "the output of a query that sees nothing")
    if subject.trains:
        output.double().square().mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                expect_finite(parameter.grad, f"the gradient of {name} beside a query that sees nothing")


def _check_packed(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal packed").eval()
    tokens = mixer.input(subject, dtype, _B, _S)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1]], device=subject.device).expand(_B, _S).contiguous()
    positions = torch.tensor([0, 1, 2, 3, 0, 1], device=subject.device)
    mask = AttentionMask(causal=True, query_segments=segments)
    packed = mixer.call(module, tokens, mask=mask, positions=positions)
    alone = [mixer.call(module, each, mask=AttentionMask(causal=True)) for each in (tokens[:, :4], tokens[:, 4:])]
    expect_same(packed, torch.cat(alone, dim=1), dtype, "packed sequences, against each alone,")


def _check_cache(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal bottom_right positions padding").eval()
    tokens = mixer.input(subject, dtype, _B, _S)
    with torch.no_grad():
        whole = mixer.call(module, tokens, mask=AttentionMask(causal=True))
        for prompt in (1, 4, _S):
            step_by_step = mixer.decode(module, tokens, prompt)
            expect_same(step_by_step, whole, dtype, f"decoding after a prompt of {prompt}, against the whole forward,")


def _check_gradients(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype)
    tokens = mixer.input(subject, dtype, 4, 16)
    output = mixer.call(module, tokens, mask=AttentionMask(causal=True))
    (output.double() * torch.randn(output.shape, dtype=torch.float64).to(output.device)).sum().backward()  # type: ignore[no-untyped-call]
    expect_gradients(module, {"the input": tokens} if tokens.requires_grad else {})


def _check_eval(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    dropping = mixer.make(subject, kind, dtype, hidden_dropout=0.4, attention_dropout=0.4).eval()
    plain = mixer.make(subject, kind, dtype).eval()
    plain.load_state_dict(dropping.state_dict())
    tokens = mixer.input(subject, dtype, _B, _S)
    output, reference = (mixer.call(each, tokens, mask=AttentionMask(causal=True)) for each in (dropping, plain))
    expect_same(output, reference, dtype, "the output in evaluation, against that of a config without dropout,")


def _check_dropout(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, hidden_dropout=0.4, attention_dropout=0.4)
    tokens = mixer.input(subject, dtype, _B, _S)
    outputs: list[Tensor] = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        outputs.append(mixer.call(module, tokens, mask=AttentionMask(causal=True)))
    expect_same(outputs[1], outputs[0], dtype, "the output in training from the same random state")
    if torch.equal(outputs[2], outputs[0]):
        raise ConformanceError("the config asks for dropout, and training drops nothing")
