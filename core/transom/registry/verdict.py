"""Whether an implementation can serve a request: a ladder of questions, the cheapest first, up to the first no.

missing, policy, api, requires, hardware, features are answered from data; broken imports the implementation, and only
then is its own ``supports`` asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from transom.errors import PluginImportError
from transom.registry.card import ANY, CardSection, alternatives
from transom.registry.implementation import Implementation
from transom.registry.scan import installed_version, requirements_of
from transom.slots.request import BuildContext, Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from transom.registry.policy import Policy

__all__ = ["Stage", "Verdict", "asked_of_card", "contract_refusal", "judge", "judge_by_card", "unmet_requirements"]

Stage = Literal["missing", "policy", "api", "requires", "hardware", "features", "broken", "supports", "ok"]


@dataclass(frozen=True)
class Verdict:
    """Yes, or no with a stage, a reason and a hint.

    Args:
        slot: the slot's name.
        ref: the implementation's qualified name, or what was asked for where there is none.
        ok: whether it can serve.
        stage: the question that was answered with no, or ``"ok"``.
        reason: a sentence; empty when it can serve.
        hint: what to do about it; for an implementation that will go, what to use instead.
    """

    slot: str
    ref: str
    ok: bool
    stage: Stage
    reason: str = ""
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.ref}: {'can serve' if self.ok else f'{self.reason} ({self.stage})'}"


def judge(implementation: Implementation, slot: Slot, request: Request, policy: Policy) -> Verdict:
    """Tell whether an implementation can serve a request; it is imported only if all data say yes.

    Args:
        implementation: the candidate.
        slot: its slot.
        request: what it must serve.
        policy: which distributions may be chosen.
    """
    verdict = judge_by_card(implementation, slot, request, policy)
    if not verdict.ok:
        return verdict
    try:
        builder = implementation.load_for(slot)
    except PluginImportError as error:
        return _no(implementation, "broken", error.reason, error.hint or "see its traceback: transom doctor")
    reasons = _objections(builder, request)
    if reasons:
        return _no(implementation, "supports", "; ".join(reasons), None)
    return verdict


def asked_of_card(request: Request) -> tuple[BuildContext, frozenset[str], bool]:
    """Return all of a request that `judge_by_card` looks at where it says yes: equal requests in this get one answer.

    Args:
        request: what must be served.
    """
    return request.context, request.features, getattr(request, "after_norm", False)


def judge_by_card(implementation: Implementation, slot: Slot, request: Request, policy: Policy) -> Verdict:
    """Climb the part of the ladder that imports nothing: policy, api, requires, hardware, features."""
    refusal = None if implementation.builder is not None else policy.refusal(implementation.distribution)
    if refusal is not None:
        return _no(implementation, "policy", f"the policy forbids {implementation.distribution}: {refusal}", None)
    if implementation.card_error is not None:
        hint = f"mend or reinstall {implementation.distribution}"
        return _no(implementation, "api", f"its card is broken: {implementation.card_error.what}", hint)
    card = implementation.card
    if card is None:
        return _yes(implementation, None)
    for stage, refuse in _LADDER:
        reason, hint = refuse(implementation, card, slot, request)
        if reason:
            return _no(implementation, stage, reason, hint)
    return _yes(implementation, card)


Answer = tuple[str | None, str | None]
"""A reason to refuse, `None` = none, and a hint."""


def contract_refusal(distribution: str, card: CardSection, slot: Slot) -> Answer:
    """Tell whether what was written for one version of a slot's contract fits another; a reason and a hint if not."""
    major, _, minor = card.api.partition(".")
    written_for = (int(major), int(minor))
    if written_for[0] == slot.api[0] and written_for[1] <= slot.api[1]:
        return None, None
    side = "transom" if written_for > slot.api else distribution
    have = ".".join(map(str, slot.api))
    return f"it is written for {slot.name} contract {card.api}, this transom has {have}", f"upgrade {side}"


def _refuse_api(implementation: Implementation, card: CardSection, slot: Slot, request: Request) -> Answer:
    return contract_refusal(implementation.distribution, card, slot)


def _refuse_requires(implementation: Implementation, card: CardSection, slot: Slot, request: Request) -> Answer:
    unmet = unmet_requirements(card.requires)
    if not unmet:
        return None, None
    missing = " ".join(f"'{alternatives(requirement)[0].partition(';')[0].strip()}'" for requirement, _ in unmet)
    return f"it requires {', and '.join(complaint for _, complaint in unmet)}", card.install or f"pip install {missing}"


def _refuse_hardware(implementation: Implementation, card: CardSection, slot: Slot, request: Request) -> Answer:
    context = request.context
    if context.device not in card.devices and ANY not in card.devices and context.device != "meta":
        hint = f"build for {' or '.join(card.devices)} on a machine that has it, or name another implementation"
        return f"it runs on {_listed(card.devices)}, not on {context.device}", hint
    if context.device != "cuda" or card.min_compute_capability is None:
        return None, None
    needed = f"it needs compute capability {card.min_compute_capability}"
    if context.compute_capability is None:
        hint = "plan on a machine whose torch finds a CUDA device, or say which it is for in the build context"
        return f"{needed}, and which device it is for is not known", hint
    if context.compute_capability < tuple(map(int, card.min_compute_capability.split("."))):
        return f"{needed}, this device has {'.'.join(map(str, context.compute_capability))}", None
    return None, None


def _refuse_features(implementation: Implementation, card: CardSection, slot: Slot, request: Request) -> Answer:
    undeclared = sorted(request.features - set(card.features))
    named = _listed(f"{name} ({slot.features[name]})" if name in slot.features else name for name in undeclared)
    reasons = [f"its card does not declare {named}"] if undeclared else []
    if card.includes_norm and not getattr(request, "after_norm", False):
        reasons.append("it brings a norm along, and none stands before this place that feeds it alone")
    reasons += _unfit(card, request.context)
    return "; ".join(reasons) or None, "\n".join(_settings(undeclared, slot, request)) or None


def _settings(features: Iterable[str], slot: Slot, request: Request) -> Iterator[str]:
    """Say which field of the config asks for each feature that one alone asks for."""
    for name in features:
        field, _, value = slot.settings.get(name, "").partition(": ")
        now = getattr(request, name, None)
        if value:
            yield f"config.{field}: {value} (it is {now}), or an implementation that declares {name}"
        elif field:
            yield f"an implementation that declares {name}, which config.{field} asks for"


def _unfit(card: CardSection, context: BuildContext) -> Iterator[str]:
    if context.dtype not in card.dtypes and ANY not in card.dtypes:
        yield f"it computes in {_listed(card.dtypes)}, not in {context.dtype}"
    if context.mode not in card.modes:
        yield f"it is for {_listed(card.modes)}, not for {context.mode}"
    if context.compile and not card.compiles:
        yield "it is not declared to compile in one graph"
    if context.deterministic and not card.deterministic:
        yield "it is not declared deterministic"


_LADDER: tuple[tuple[Stage, Any], ...] = (
    ("api", _refuse_api),
    ("requires", _refuse_requires),
    ("hardware", _refuse_hardware),
    ("features", _refuse_features),
)


@lru_cache(maxsize=1024)
def unmet_requirements(requires: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the requirements that what is installed does not meet, each with a complaint.

    Args:
        requires: as in a card: distributions with version specifiers, environment markers and extras; alternatives
            with ``|`` between them, one of which is enough.

    Example:
        >>> unmet_requirements(("transom>=0.1", "no-such-distribution>=2"))
        (('no-such-distribution>=2', 'no-such-distribution>=2, which is not installed'),)
    """
    complaints = ((requirement, _unmet(requirement)) for requirement in requires)
    return tuple((requirement, complaint) for requirement, complaint in complaints if complaint is not None)


def _unmet(requirement: str) -> str | None:
    """Say what is missing of a requirement; `None` when one of its alternatives is met."""
    complaints = [next(_complaints(text), None) for text in alternatives(requirement)]
    return None if None in complaints else ", or ".join(filter(None, complaints))


def _complaints(text: str) -> Iterator[str]:
    """Yield what is missing of one requirement, the dependencies of its extras included."""
    pending: list[tuple[str, str]] = [(text, "")]
    seen: set[tuple[str, str]] = set()
    while pending:
        text, extra = pending.pop()
        requirement = _parsed(text)
        if (text, extra) in seen or requirement is None or not _applies(requirement, extra):
            continue
        seen.add((text, extra))
        version = installed_version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            yield f"{wanted}, which is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{wanted}, but {version} is installed"
        dependencies = requirements_of(requirement.name) if requirement.extras else ()
        pending += [(each, name) for name in requirement.extras for each in dependencies if "extra" in each]


def _parsed(text: str) -> Requirement | None:
    """Parse a requirement; `None` for one that another distribution's metadata misspell (a card's were validated)."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _applies(requirement: Requirement, extra: str) -> bool:
    """Tell whether a requirement is for this environment and, where an extra is asked for, for that alone."""
    marker = requirement.marker
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and not (extra and marker.evaluate({"extra": ""}))


def _objections(builder: Any, request: Request) -> tuple[str, ...]:
    """Ask the implementation itself, where it has something to say."""
    try:
        supports = getattr(builder, "supports", None)
        answer: str | Iterable[str] = () if supports is None else supports(request)
        return tuple(str(reason) for reason in ((answer,) if isinstance(answer, str) else answer) if reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an answer that cannot be had is no yes
        return (f"its supports() failed: {type(error).__name__}: {error}",)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _no(implementation: Implementation, stage: Stage, reason: str, hint: str | None) -> Verdict:
    return Verdict(implementation.slot, implementation.ref, False, stage, reason, hint)


def _yes(implementation: Implementation, card: CardSection | None) -> Verdict:
    hint = None
    if card is not None and card.deprecated is not None:
        replacement = card.deprecated.replacement
        hint = f"{implementation.ref} is deprecated: {card.deprecated.message}"
        hint += f"; use {replacement}" if replacement else ""
    return Verdict(implementation.slot, implementation.ref, True, "ok", "", hint)
