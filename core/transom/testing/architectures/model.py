"""Cases of the model slot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.slots.model import ModelRequest
from transom.testing.architectures.encoder_decoder import encoder_decoder_cases
from transom.testing.architectures.mixer import Mixer
from transom.testing.architectures.mixing import mixing_cases
from transom.testing.architectures.properties import expect_same, expect_shape
from transom.testing.architectures.variants import contract_case
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["cases"]

_V, _LONGEST = 32, 32
_IGNORED = -100


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a model: those of an encoder-decoder where its card declares that it is one."""
    if "encoder_decoder" in subject.features:
        yield from encoder_decoder_cases(subject)
        return
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
    yield from contract_case(subject, "causal_by_default", "without a mask it is causal", _check_default, mixer)
    yield from contract_case(subject, "bool_mask", "a mask may be a boolean tensor [b, s, s]", _check_mask, mixer)
    shows = "with labels it gives each token's cross-entropy, nothing where there is none"
    yield from contract_case(subject, "losses", shows, _check_losses, mixer, dtypes=True)
    if subject.declares_training:
        yield from contract_case(
            subject, "learns", "a few steps on one batch lower the loss", subject.in_training(_check_learns), mixer
        )


def _request(subject: Subject, config: TransformerConfig, masks: frozenset[str], layer_number: int) -> ModelRequest:
    return ModelRequest(
        context=subject.context(config.params_dtype),
        config=config,
        masks=masks,
        vocab_size=_V,
        max_sequence_length=_LONGEST,
    )


def _call(
    module: nn.Module, tokens: Tensor, *, mask: AttentionMask | None = None, positions: Tensor | None = None
) -> Tensor:
    logits: Tensor = module(tokens, mask=mask, input_pos=positions)
    return logits


def _decode(module: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    setup, delete = (getattr(module, name, None) for name in ("setup_caches", "delete_caches"))
    if not callable(setup) or not callable(delete):
        raise CaseSkipped("it has no setup_caches() and delete_caches()")
    setup(tokens.shape[0])
    outputs = []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, tokens.shape[1]))]:
        positions = torch.arange(start, end, device=tokens.device)
        outputs.append(_call(module, tokens[:, start:end], positions=positions))
    delete()
    return torch.cat(outputs, dim=1)


def _check_default(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    tokens = mixer.input(subject, dtype, 2, 6)
    causal = _call(module, tokens, mask=AttentionMask(causal=True))
    expect_same(_call(module, tokens), causal, dtype, "logits without a mask, against a causal one,")


def _check_mask(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype, "causal keep").eval()
    tokens = mixer.input(subject, dtype, 2, 6)
    keep = torch.ones(6, 6, device=subject.device).tril().bool().expand(2, 6, 6).contiguous()
    causal = _call(module, tokens)
    expect_same(module(tokens, mask=keep), causal, dtype, "logits with a triangle as mask, against causal ones,")
    keep[:, :, 0] = False  # nobody sees the first token any more
    keep[:, 0, 0] = True
    changed = mixer.changed(tokens, torch.arange(6) == 0)
    output, other = module(tokens, mask=keep), module(changed, mask=keep)
    expect_same(other[:, 1:], output[:, 1:], dtype, "logits beside a change of a token that the mask hides")


def _check_losses(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype).eval()
    tokens = mixer.input(subject, dtype, 2, 6)
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = _IGNORED
    losses = module(tokens, labels=labels)
    wide = torch.float64 if dtype == "float64" else torch.float32
    expect_shape(losses, (2, 6), wide, "the losses")
    if bool(losses[:, -1].count_nonzero()):
        raise ConformanceError("a token without a label costs something")
    logits = _call(module, tokens).double()
    reference = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none")
    expect_same(losses, reference.view(2, 6), dtype, "the losses, against the cross-entropy of the logits,")


def _check_learns(subject: Subject, kind: str, dtype: str, mixer: Mixer) -> None:
    module = mixer.make(subject, kind, dtype)
    tokens = mixer.input(subject, dtype, 2, 8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = module(tokens, labels=tokens.roll(-1, dims=1)).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if losses[-1] > 0.8 * losses[0]:
        raise ConformanceError(
            f"{len(losses)} steps on one batch: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
        )
