"""Cases of the model slot, for models that read one sequence and write another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.slots.model import ModelRequest
from transom.testing.architectures.mixer import Mixer
from transom.testing.architectures.mixing import mixing_cases
from transom.testing.architectures.properties import expect_depends, expect_same, expect_shape
from transom.testing.architectures.variants import contract_case
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["encoder_decoder_cases"]

_V, _LONGEST, _T = 32, 32, 5
_IGNORED = -100


def encoder_decoder_cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of an encoder-decoder: those of a model that reads the same all the time, and its own."""
    mixer = Mixer(
        request=_request,
        arguments=lambda number: {},
        tokens=lambda b, s: torch.randint(_V, (b, s)),
        call=_call,
        decode=_decode,
        width=_V,
        result_dtype=torch.float32,
    )
    yield from mixing_cases(subject, mixer)
    shows = "what is written depends on all that is read, and not on padding"
    yield from contract_case(subject, "reads", shows, _check_reads, mixer)
    yield from contract_case(subject, "in_two", "forward is encode, then decode", _check_in_two, mixer)
    yield from contract_case(subject, "masks", "every mask may be a boolean tensor of each shape", _check_masks, mixer)
    shows = "with labels it gives each token's cross-entropy, nothing where there is none"
    yield from contract_case(subject, "losses", shows, _check_losses, mixer, dtypes=True)
    shows = "after reordering its caches it goes on from the chosen rows"
    yield from contract_case(subject, "reorder", shows, _check_reorder, mixer)
    if subject.declares_training:
        yield from contract_case(
            subject, "learns", "a few steps on one batch lower the loss", subject.in_training(_check_learns), mixer
        )


def _request(subject: Subject, config: TransformerConfig, masks: frozenset[str], layer_number: int) -> ModelRequest:
    return ModelRequest(
        context=subject.context(config.params_dtype),
        features=frozenset({"encoder_decoder"}),
        config=config,
        masks=masks,
        vocab_size=_V,
        max_sequence_length=_LONGEST,
    )


def _source(tokens: Tensor) -> Tensor:
    """Give what is read: of each row something else, and always the same."""
    rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    return (7 * rows + 3 * torch.arange(_T, device=tokens.device)) % _V


def _padding(subject: Subject) -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=subject.device).bool()


def _call(
    module: nn.Module, tokens: Tensor, *, mask: AttentionMask | None = None, positions: Tensor | None = None
) -> Tensor:
    if positions is None:
        return _narrow(module(_source(tokens), tokens, None, mask, None))
    model: Any = module
    read = model.encode(_source(tokens))
    return _narrow(model.decode(tokens, read, decoder_attn_mask=mask, input_pos=positions))


def _narrow(logits: Tensor) -> Tensor:
    # A float64 model may give more than was asked for.
    return logits.float() if logits.dtype is torch.float64 else logits


def _caching(module: nn.Module) -> Any:
    if not callable(getattr(module, "setup_caches", None)) or not callable(getattr(module, "delete_caches", None)):
        raise CaseSkipped("it has no setup_caches() and delete_caches()")
    return module


def _decode(module: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    model = _caching(module)
    read = model.encode(_source(tokens))
    model.setup_caches(tokens.shape[0])
    outputs = []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, tokens.shape[1]))]:
        positions = torch.arange(start, end, device=tokens.device)
        outputs.append(_narrow(model.decode(tokens[:, start:end], read if start == 0 else None, input_pos=positions)))
    model.delete_caches()
    return torch.cat(outputs, dim=1)


def _check_reads(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module: Any = mixer.make(subject, kind, dtype, "causal padding").eval()
    written = mixer.input(subject, dtype, 2, 6)
    read = _source(written)
    padding = _padding(subject)

    def call(source: Tensor) -> Tensor:
        return _narrow(module(source, written, padding, None, padding))

    output = call(read)
    expect_same(call(mixer.changed(read, ~padding)), output, dtype, "what is written beside padding that changed")
    for place in range(_T):
        where = (torch.arange(_T, device=subject.device) == place) & padding
        changed = where.any(dim=1)
        other = call(mixer.changed(read, where))
        expect_depends(other[changed], output[changed], f"token {place} of what is read")
    first, later = (module.encode(each, padding)[:, 0] for each in (read, mixer.changed(read, torch.arange(_T) == 2)))
    expect_depends(later, first, "a later token of what is read, where it is read")
    shorter = module(read[1:, :3], written[1:], None, None, None)
    expect_same(output[1:], _narrow(shorter), dtype, "what is written beside padding, against that without it,")


def _check_in_two(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    model: Any = mixer.make(subject, kind, dtype, "causal padding").eval()
    written, padding = mixer.input(subject, dtype, 2, 6), _padding(subject)
    read = _source(written)
    whole = _narrow(model(read, written, padding, None, padding))
    hidden = model.encode(read, padding)
    decoded = _narrow(model.decode(written, hidden, encoder_decoder_attn_mask=padding))
    expect_same(decoded, whole, dtype, "encode and decode, against forward,")
    given = model(None, written, None, None, padding, encoder_hidden_states=hidden)
    expect_same(_narrow(given), whole, dtype, "forward of hidden states that are given, against the whole,")


def _check_masks(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal padding keep").eval()
    written = mixer.input(subject, dtype, 2, 6)
    read = _source(written)
    padding = _padding(subject)
    triangle = torch.ones(6, 6, device=subject.device).tril().bool().expand(2, 6, 6)
    expected = _narrow(module(read, written, padding, None, padding))
    of_read = padding[:, None].expand(2, _T, _T)
    of_both = padding[:, None].expand(2, 6, _T)
    for masks in (
        (of_read, triangle, of_both),
        (of_read[:, None], triangle[:, None], of_both[:, None]),
        (AttentionMask(key_padding=padding), AttentionMask(causal=True), AttentionMask(key_padding=padding)),
    ):
        what = f"logits with masks of {getattr(masks[0], 'ndim', 'no')} axes, against those with padding,"
        expect_same(_narrow(module(read, written, *masks)), expected, dtype, what)


def _check_losses(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    written = mixer.input(subject, dtype, 2, 6)
    labels = written.roll(-1, dims=1)
    labels[:, -1] = _IGNORED
    losses = _narrow(module(_source(written), written, None, None, None, lm_labels=labels))
    expect_shape(losses, (2, 6), torch.float32, "the losses")
    if bool(losses[:, -1].count_nonzero()):
        raise ConformanceError("a token without a label costs something")
    logits = _call(module, written).double()
    reference = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none")
    expect_same(losses, reference.view(2, 6), dtype, "the losses, against the cross-entropy of the logits,")


@torch.no_grad()
def _check_reorder(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    model = _caching(mixer.make(subject, kind, dtype, "causal bottom_right positions padding").eval())
    if not callable(getattr(model, "reorder_caches", None)):
        raise CaseSkipped("it has no reorder_caches()")
    written = mixer.input(subject, dtype, 3, 5)
    read, rows = _source(written), torch.tensor([2, 0, 0], device=subject.device)
    first, last = torch.arange(4, device=subject.device), torch.tensor([4], device=subject.device)
    model.setup_caches(3)
    model.decode(written[:, :4], model.encode(read), input_pos=first)
    model.reorder_caches(rows)
    step = model.decode(written[:, 4:], input_pos=last)
    model.delete_caches()
    chosen = torch.cat([written[rows, :4], written[:, 4:]], dim=1)
    expected = model(read[rows], chosen, None, None, None)[:, 4:]
    expect_same(_narrow(step), _narrow(expected), dtype, "a step after reordering, against the whole forward,")


def _check_learns(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype)
    written = mixer.input(subject, dtype, 2, 8)
    read, labels = _source(written), written.roll(-1, dims=1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = module(read, written, None, None, None, lm_labels=labels).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if losses[-1] > 0.8 * losses[0]:
        raise ConformanceError(
            f"{len(losses)} steps on one batch: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
        )
