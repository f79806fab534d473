"""From the names that a user asked for to the implementation that serves, with the verdict of every one tried."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transom.errors import PluginImportError, ResolutionError, UnknownImplementationError
from transom.registry.implementation import Implementation
from transom.registry.names import AUTO, parse_chain
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.verdict import Verdict, judge, judge_by_card
from transom.slots.request import Request
from transom.slots.slot import Slot

__all__ = ["Attempt", "Resolution", "auto_order", "parse_chain", "resolve"]


@dataclass(frozen=True)
class Attempt:
    """Names that were tried for a slot.

    Args:
        slot: the slot's name.
        asked: the names, as they were asked for.
        verdicts: one for every name that was tried, in order; ``auto`` is tried as the names it stands for.
    """

    slot: str
    asked: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def refused(self) -> tuple[Verdict, ...]:
        """The verdicts of those that could not serve."""
        return tuple(verdict for verdict in self.verdicts if not verdict.ok)


@dataclass(frozen=True)
class Resolution(Attempt):
    """What was chosen, and why nothing before it was.

    Args:
        chosen: the implementation that serves.
    """

    chosen: Implementation

    @property
    def verdict(self) -> Verdict:
        """The verdict of the chosen one."""
        return self.verdicts[-1]


def auto_order(slot: Slot) -> tuple[str, ...]:
    """Return the names that ``auto`` stands for in a slot: core's own choice, into which no plugin gets by itself."""
    return () if slot.default is None else (slot.default,)


def resolve(
    slot_name: str,
    asked: str | Sequence[str],
    request: Request,
    *,
    asked_by: str | None = None,
    registry: Registry | None = None,
    policy: Policy | None = None,
) -> Resolution:
    """Choose the first of the names that can serve.

    Every refusal is recorded in the resolution and logged once. Nothing is imported but what is about to be chosen.

    Args:
        slot_name: the slot.
        asked: one name, ``"a | b | c"``, or a list; ``auto`` stands for core's own order.
        request: what must be served.
        asked_by: who asked: a path in a spec, an option, an argument.
        registry: where to look; `None` = this process's.
        policy: which distributions may be chosen; `None` = what the environment says.

    Returns:
        the choice, which can be pickled.

    Raises:
        SpecError: when the names are malformed.
        UnknownSlotError: when there is no such slot.
        UnknownImplementationError: when a single name is unknown.
        AmbiguousNameError: when a bare name is several distributions'.
        ResolutionError: when none can serve; `resolution` holds every verdict.
        PluginImportError: when an import fails in a chain under TRANSOM_STRICT.
    """
    registry = default_registry() if registry is None else registry
    policy = Policy.from_environment() if policy is None else policy
    slot = registry.slot(slot_name, asked_by=asked_by)
    wanted = parse_chain(asked, asked_by=asked_by)
    names = _expand(wanted, slot)
    _warn_of_idle_patterns(registry, policy)
    verdicts: list[Verdict] = []
    for name in names:
        chosen, verdict = _try(registry, slot, name, request, policy, asked_by, is_alone=len(names) == 1)
        verdicts.append(verdict)
        if chosen is not None and verdict.ok:
            if verdict.hint:
                registry.tell_once(logging.WARNING, verdict.hint)
            return Resolution(slot.name, wanted, tuple(verdicts), chosen)
    raise _error(Attempt(slot.name, wanted, tuple(verdicts)), slot, request, registry, policy, asked_by)


def _warn_of_idle_patterns(registry: Registry, policy: Policy) -> None:
    if (policy.allow or policy.deny) and registry.index.is_complete:
        for line in policy.idle(registry.index.distributions):
            registry.tell_once(logging.WARNING, f"{line}.")


def _expand(names: tuple[str, ...], slot: Slot) -> tuple[str, ...]:
    """Put core's order in the place of ``auto``."""
    expanded = [each for name in names for each in (auto_order(slot) if name == AUTO else (name,))]
    return tuple(dict.fromkeys(expanded))


def _try(
    registry: Registry,
    slot: Slot,
    name: str,
    request: Request,
    policy: Policy,
    asked_by: str | None,
    *,
    is_alone: bool,
) -> tuple[Implementation | None, Verdict]:
    """Judge one name; in a chain, a name that nothing has is one more that cannot serve."""
    try:
        implementation = registry.get(slot.name, name, asked_by=asked_by)
    except UnknownImplementationError as error:
        if is_alone:
            raise
        verdict = Verdict(slot.name, name, False, "missing", error.what, error.hint)
        registry.tell_once(logging.INFO, _passed_over(verdict))
        return None, verdict
    verdict = judge(implementation, slot, request, policy)
    if not verdict.ok and not is_alone:
        broken = verdict.stage == "broken"
        if broken and policy.strict:
            implementation.load_for(slot)
        registry.tell_once(logging.WARNING if broken else logging.INFO, _passed_over(verdict))
    return implementation, verdict


def _passed_over(verdict: Verdict) -> str:
    hint = f" To mend it: {verdict.hint}" if verdict.hint else ""
    return f"{verdict.slot} {verdict.ref} is passed over ({verdict.stage}): {verdict.reason.rstrip('.')}.{hint}"


def _error(
    attempt: Attempt, slot: Slot, request: Request, registry: Registry, policy: Policy, asked_by: str | None
) -> ResolutionError:
    """Say why none serves, and which of the others could by what their cards declare."""
    tried = {verdict.ref for verdict in attempt.verdicts}
    able = [
        other
        for other in registry.implementations(slot.name)
        if other.ref not in tried
        and other.card is not None
        and other.failure is None
        and judge_by_card(other, slot, request, policy).ok
    ]
    hints = list(dict.fromkeys(verdict.hint for verdict in attempt.verdicts if verdict.hint))
    if able:
        hints.append(f"{' or '.join(other.ref for other in able)}, which can serve by what it declares")
    what = f"{slot.name}: none of {', '.join(attempt.asked)} can serve."
    if not attempt.verdicts:
        what = f"{slot.name} has no default, and nothing else was asked for."
    elif len(attempt.asked) == 1:
        what = f"{slot.name} {attempt.asked[0]!r} cannot serve."
    error = ResolutionError(
        what,
        asked_by=asked_by,
        available=[other.label for other in able],
        failed=[str(verdict) for verdict in attempt.verdicts],
        hint="\n".join(hints) or f"All: transom list {slot.name}",
        slot=slot.name,
        resolution=attempt,
    )
    error.__cause__ = _import_failure(attempt, slot, registry)
    return error


def _import_failure(attempt: Attempt, slot: Slot, registry: Registry) -> PluginImportError | None:
    """Return what the first broken import raised, to be chained."""
    for verdict in attempt.verdicts:
        if verdict.stage == "broken":
            try:
                registry.get(slot.name, verdict.ref).load_for(slot)
            except PluginImportError as error:
                return error
    return None
