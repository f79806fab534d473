"""What an implementation declares: that it can be read and imported, and that nothing else is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from transom.errors import PluginImportError
from transom.registry.card import ANY
from transom.registry.verdict import unmet_requirements
from transom.slots.request import BuildContext
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.hygiene import check_import
from transom.testing.requests import plain_request
from transom.testing.subject import DTYPES, Subject

__all__ = ["declaration_cases"]

_DEVICES = ("cpu", "cuda", "xpu", "mps")


def declaration_cases(subject: Subject) -> Iterator[Case]:
    """Make the cases that need no tensor: card, entry point, signature, refusals, and what the import does.

    Args:
        subject: what is tested.
    """
    yield Case("card", "readable", "a card declares what it supports", partial(_check_card, subject))
    shows = "its entry point is imported, and takes what its slot's callers pass"
    yield Case("card", "importable", shows, partial(_check_importable, subject))
    shows = "supports() answers the same twice, and draws no random numbers"
    yield Case("card", "supports", shows, partial(_check_supports, subject))
    for feature in subject.slot.features:
        if feature not in subject.features:
            yield _refused(subject, feature, f"a request for {feature} is refused with a reason", {feature})
    for name, change in _undeclared(subject):
        yield _refused(subject, name, f"{name}, which is not declared, is refused with a reason", set(), **change)
    shows = "importing it changes no setting of Python or torch"
    yield Case("import", "hygiene", shows, partial(check_import, subject.implementation))


def _undeclared(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the card does not declare beside features, as changes of a build context."""
    card = subject.card
    for dtype in DTYPES:
        if dtype not in card.dtypes and ANY not in card.dtypes:
            yield dtype, {"dtype": dtype}
    for device in _DEVICES:
        if device not in card.devices and ANY not in card.devices:
            yield device, {"device": device, "compute_capability": (99, 0) if device == "cuda" else None}
    for mode in ("train", "infer"):
        if mode not in card.modes:
            yield mode, {"mode": mode}
    if not card.compiles:
        yield "compile", {"compile": True}
    if not card.deterministic:
        yield "deterministic", {"deterministic": True}


def _refused(subject: Subject, name: str, shows: str, features: set[str], **change: Any) -> Case:
    return Case("refused", name, shows, partial(_check_refused, subject, name, frozenset(features), change))


def _declared_context(subject: Subject, **change: Any) -> BuildContext:
    """Make a context that the card covers, whatever this machine has."""
    device = next((each for each in subject.card.devices if each != ANY), "cpu")
    capability = (99, 0) if device == "cuda" else None
    declared = BuildContext(device=device, dtype=subject.dtype, mode=subject.mode, compute_capability=capability)
    return BuildContext(
        **{name: change.get(name, getattr(declared, name)) for name in BuildContext.__dataclass_fields__}
    )


def _check_card(subject: Subject) -> None:
    error = subject.implementation.card_error
    if error is not None:
        raise ConformanceError(f"its card is broken: {error}")
    if subject.implementation.card is None:
        section = f"[{subject.implementation.slot}.{subject.implementation.name}]"
        raise ConformanceError(f"no card declares anything: a transom.toml with a section {section} is missing")
    unknown = sorted(subject.features - set(subject.slot.features))
    if unknown:
        raise ConformanceError(f"it declares what the slot {subject.slot.name} does not know: {', '.join(unknown)}")
    if not subject.dtypes:
        raise ConformanceError(f"it declares none of the dtypes that can be tested: {', '.join(DTYPES)}")


def _check_importable(subject: Subject) -> None:
    unmet = unmet_requirements(subject.card.requires)
    if unmet:
        raise CaseSkipped(f"it requires {', and '.join(complaint for _, complaint in unmet)}")
    try:
        subject.implementation.load_for(subject.slot)
    except PluginImportError as error:
        raise ConformanceError(f"{error}\n{error.traceback or ''}".rstrip()) from error


def _check_supports(subject: Subject) -> None:
    request = plain_request(subject.slot.name, _declared_context(subject))
    before = torch.get_rng_state()
    first, second = subject.verdict(request), subject.verdict(request)
    if first != second:
        raise ConformanceError(f"supports() gave two answers to one request: {first}, then {second}")
    if "its supports() failed" in first.reason:
        raise ConformanceError(first.reason)
    if not torch.equal(torch.get_rng_state(), before):
        raise ConformanceError("supports() drew random numbers")


def _check_refused(subject: Subject, name: str, features: frozenset[str], change: dict[str, Any]) -> None:
    request = plain_request(subject.slot.name, _declared_context(subject, **change), features)
    verdict = subject.verdict(request)
    if verdict.ok:
        raise ConformanceError(f"{name} is not declared, and a request for it is not refused")
    if verdict.stage == "requires":
        raise CaseSkipped(f"{verdict.stage}: {verdict.reason}")
    if not verdict.reason.strip():
        raise ConformanceError(f"a request for {name} is refused without a reason")
