"""Cases of the loss slot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from transom.slots.loss import LossRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_IGNORED = -100


@dataclass(frozen=True)
class _Call:
    """One loss over ``[b, s]`` tokens of a vocabulary."""

    name: str
    shows: str
    shape: tuple[int, int] = (2, 5)
    vocab_size: int = 37
    bias: bool = False
    z_loss: float = 0.0
    softcap: float | None = None
    ignored: tuple[int, ...] = ()
    ignore_index: int = _IGNORED
    magnitude: float = 1.0
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        asked = {"z_loss": bool(self.z_loss), "softcap": self.softcap is not None}
        return frozenset(name for name, is_asked in asked.items() if is_asked)


_CALLS = (
    _Call("cross_entropy", "the negative logarithm of each label's probability", principal=True),
    _Call("bias", "a bias of the logits", bias=True),
    _Call("ignored", "ignored labels cost nothing and give no gradient", ignored=(0, 3, 7), principal=True),
    _Call("all_ignored", "nothing but ignored labels", ignored=tuple(range(10))),
    _Call("ignore_index", "the request's ignore_index counts", ignored=(1, 2), ignore_index=3),
    _Call("large_logits", "logits in the hundreds do not overflow", magnitude=150.0),
    _Call("many_tokens", "more tokens and ids than fit into one block of a kernel", shape=(3, 70), vocab_size=300),
    _Call("one_token", "a single token", shape=(1, 1)),
    _Call("z_loss", "the squared log-partition is penalised", z_loss=0.01, principal=True),
    _Call("softcap", "the logits are capped smoothly", softcap=2.0, magnitude=4.0, principal=True),
    _Call("softcap_z_loss", "the penalty is of the capped logits", softcap=2.0, z_loss=0.01, magnitude=4.0),
    _Call("z_loss_ignored", "ignored labels cost no penalty either", z_loss=0.01, ignored=(0, 9)),
)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a loss."""
    yield from agreement_cases(subject, tuple(_agreement(call, subject) for call in _CALLS))
    yield from module_cases(subject, _exercise(subject))


def _agreement(call: _Call, subject: Subject) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=partial(_request, call),
        make=partial(_make, call),
        inputs=partial(_inputs, call),
        run=_run,
        expected=partial(_expected, call),
        features=call.features,
        principal=call.principal,
        wide=frozenset({"loss"}),
    )


def _request(call: _Call, context: BuildContext) -> LossRequest:
    return LossRequest(
        context=context,
        features=call.features,
        vocab_size=call.vocab_size,
        ignore_index=call.ignore_index,
        z_loss=call.z_loss,
        softcap=call.softcap,
    )


def _make(call: _Call, subject: Subject, request: Request, *, on: str | None = None) -> nn.Module:
    config = config_for(params_dtype=request.context.dtype, z_loss=call.z_loss, final_logit_softcapping=call.softcap)
    return subject.build(request, config, on=on, request=request)


def _inputs(call: _Call) -> Tensors:
    labels = torch.randint(call.vocab_size, call.shape)
    labels = torch.where(labels == call.ignore_index, 0, labels)
    labels.view(-1)[list(call.ignored)] = call.ignore_index
    made = {
        "hidden": call.magnitude * torch.randn(*call.shape, 16, dtype=torch.float64),
        "weight": torch.randn(call.vocab_size, 16, dtype=torch.float64) / 4,
        "labels": labels,
    }
    return made | ({"bias": torch.randn(call.vocab_size, dtype=torch.float64)} if call.bias else {})


def _run(module: nn.Module, inputs: Tensors) -> Tensors:
    return {"loss": module(inputs["hidden"], inputs["weight"], inputs["labels"], inputs.get("bias"))}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    logits = inputs["hidden"] @ inputs["weight"].T
    if "bias" in inputs:
        logits = logits + inputs["bias"]
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    peak = logits.detach().amax(dim=-1, keepdim=True)
    partition = (logits - peak).exp().sum(dim=-1).log() + peak.squeeze(-1)
    labels = inputs["labels"]
    counted = labels != call.ignore_index
    chosen = logits.gather(-1, labels.where(counted, 0)[..., None]).squeeze(-1)
    losses = partition - chosen + call.z_loss * partition.square()
    return {"loss": losses * counted}


def _exercise(subject: Subject) -> Exercise:
    call = _CALLS[0]

    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(call, subject, _request(call, subject.context()), on=device)

    return Exercise(make, partial(_inputs, call), _run)
