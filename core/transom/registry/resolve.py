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
from transom.registry.user_config import config_file, user_config
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

    @property
    def rests_on_card(self) -> bool:
        """Whether data alone decided: the first was chosen, and is none that asks for more by ``supports``.

        It then serves every request that asks the same of its card (`transom.registry.verdict.asked_of_card`).
        """
        return len(self.verdicts) == 1 and getattr(self.chosen.load(), "supports", None) is None


def auto_order(slot: Slot) -> tuple[str, ...]:
    """Return the names that ``auto`` stands for in a slot: the user's order, or else core's own choice.

    No plugin gets into it by itself.

    Raises:
        UserConfigError: when the user's config file is wrong.
    """
    return user_config().order(slot.name) or (() if slot.default is None else (slot.default,))


def resolve(
    slot_name: str,
    asked: str | Sequence[str],
    request: Request,
    *,
    asked_by: str | None = None,
    registry: Registry | None = None,
    policy: Policy | None = None,
    goes_on: bool = False,
) -> Resolution:
    """Choose the first of the names that can serve.

    Every refusal is recorded in the resolution and logged once. Nothing is imported but what is about to be chosen.

    Args:
        slot_name: the slot.
        asked: one name, ``"a | b | c"``, or a list; ``auto`` stands for the user's order, or else core's own.
        request: what must be served.
        asked_by: who asked: a path in a spec, an option, an argument.
        registry: where to look; `None` = this process's.
        policy: which distributions may be chosen; `None` = `Policy.current`.
        goes_on: the caller has a way to go on where none serves: a single name is then one of a chain.

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
    policy = Policy.current() if policy is None else policy
    slot = registry.slot(slot_name, asked_by=asked_by)
    names = parse_chain(asked, asked_by=asked_by)
    question = _Question(slot, names, request, registry, policy, _origin(names, slot, asked_by), goes_on)
    question.warn_of_idle_patterns()
    return question.answer()


def _origin(names: tuple[str, ...], slot: Slot, asked_by: str | None) -> str | None:
    """Say who asked, the user's config included where ``auto`` took its names from there."""
    key = user_config().auto_key(slot.name) if AUTO in names else None
    return asked_by if key is None else ", ".join(filter(None, [asked_by, f"auto.{key} in {config_file()}"]))


@dataclass(frozen=True)
class _Question:
    """Who serves a request: the arguments of one `resolve`."""

    slot: Slot
    asked: tuple[str, ...]
    request: Request
    registry: Registry
    policy: Policy
    asked_by: str | None
    goes_on: bool

    def answer(self) -> Resolution:
        """Try the names in order."""
        expanded = (each for name in self.asked for each in (auto_order(self.slot) if name == AUTO else (name,)))
        names = tuple(dict.fromkeys(expanded))
        verdicts: list[Verdict] = []
        for name in names:
            chosen, verdict = self._try(name, is_alone=len(names) == 1 and not self.goes_on)
            verdicts.append(verdict)
            if chosen is not None:
                return Resolution(self.slot.name, self.asked, tuple(verdicts), chosen)
        raise self._error(Attempt(self.slot.name, self.asked, tuple(verdicts)))

    def warn_of_idle_patterns(self) -> None:
        """Tell of patterns in the policy that match nothing, where everything was looked at."""
        index = self.registry.index if self.policy.allow or self.policy.deny else None
        if index is not None and index.is_complete:
            for line in self.policy.idle(index.distributions):
                self.registry.tell_once(logging.WARNING, f"{line}.")

    def _try(self, name: str, *, is_alone: bool) -> tuple[Implementation | None, Verdict]:
        """Judge one name; in a chain, a name that nothing has is one more that cannot serve."""
        try:
            implementation = self.registry.get(self.slot.name, name, asked_by=self.asked_by)
        except UnknownImplementationError as error:
            if is_alone:
                raise
            verdict = Verdict(self.slot.name, name, False, "missing", error.what, error.hint)
        else:
            verdict = judge(implementation, self.slot, self.request, self.policy)
            if verdict.ok:
                self._tell(logging.WARNING, verdict.hint)
                return implementation, verdict
            if verdict.stage == "broken" and self.policy.strict and not is_alone:
                implementation.load_for(self.slot)  # raises what it raised when it was judged
        if not is_alone:
            self._tell(logging.WARNING if verdict.stage == "broken" else logging.INFO, _passed_over(verdict))
        return None, verdict

    def _tell(self, level: int, message: str | None) -> None:
        if message is not None:
            self.registry.tell_once(level, message)

    def _error(self, attempt: Attempt) -> ResolutionError:
        """Say why none serves, and which of the others could by what their cards declare."""
        able = self._able(tried={verdict.ref for verdict in attempt.verdicts})
        hints = list(dict.fromkeys(verdict.hint for verdict in attempt.verdicts if verdict.hint))
        if able:
            hints.append(f"{' or '.join(other.ref for other in able)}, which can serve by what its card declares")
        error = ResolutionError(
            _what(attempt),
            asked_by=self.asked_by,
            available=[other.label for other in able],
            failed=[str(verdict) for verdict in attempt.verdicts],
            hint="\n".join(hints) or f"All: transom list {self.slot.name}",
            slot=self.slot.name,
            resolution=attempt,
            able=tuple(other.ref for other in able),
        )
        error.__cause__ = self._import_failure(attempt)
        return error

    def _able(self, tried: set[str]) -> list[Implementation]:
        """Return who else could serve as far as data tell; what declares nothing is not proposed."""
        return [
            other
            for other in self.registry.implementations(self.slot.name)
            if other.ref not in tried and other.card is not None and other.failure is None
            if judge_by_card(other, self.slot, self.request, self.policy).ok
        ]

    def _import_failure(self, attempt: Attempt) -> PluginImportError | None:
        """Return what the first broken import raised, to be chained."""
        broken = next((verdict.ref for verdict in attempt.verdicts if verdict.stage == "broken"), None)
        return None if broken is None else self.registry.get(self.slot.name, broken).failure


def _what(attempt: Attempt) -> str:
    if not attempt.verdicts:
        return f"{attempt.slot} has no default, and nothing else was asked for."
    if len(attempt.asked) == 1:
        return f"{attempt.slot} {attempt.asked[0]!r} cannot serve."
    return f"{attempt.slot}: none of {', '.join(attempt.asked)} can serve."


def _passed_over(verdict: Verdict) -> str:
    hint = f" Try: {verdict.hint.removeprefix('All: ')}" if verdict.hint else ""
    return f"{verdict.slot} {verdict.ref} is passed over ({verdict.stage}): {verdict.reason.rstrip('.')}.{hint}"
