"""What is wrong with one distribution: metadata, entry points, card, signatures, and what importing it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from transom.diagnosis.finding import Finding
from transom.diagnosis.probe import LIMIT, Outcome, probe
from transom.errors import RegistryError, TransomError
from transom.registry.implementation import Implementation
from transom.registry.names import CORE, normalise
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.scan import Entry, installed_version, requirements_of
from transom.registry.table import RESERVED
from transom.registry.verdict import contract_refusal, unmet_requirements
from transom.specs.bundle import GROUP as BUNDLES
from transom.specs.bundle import load_bundles

__all__ = ["check_distribution", "contract_findings", "entries_of", "import_findings", "requirement_findings"]


def check_distribution(distribution: str, registry: Registry, *, limit: float = LIMIT) -> tuple[Finding, ...]:
    """Examine one distribution; it is imported, in another process.

    Args:
        distribution: its name, in any spelling.
        registry: what is installed.
        limit: seconds that each import may take.

    Returns:
        what is wrong with it and what its authors should know; empty when there is nothing to say.
    """
    entries = entries_of(distribution, registry)
    own = [c for c in registry.implementations() if c.builder is None and _is(c.distribution, distribution)]
    problems = [p for p in registry.problems() if _is(p.distribution, distribution) and p.kind != "import"]
    session = probe([entry for entry in entries if entry.group != BUNDLES], limit=limit, with_state=True)
    findings = [
        *map(Finding.of, problems),
        *requirement_findings(distribution),
        *(finding for implementation in own for finding in _card_findings(implementation, registry)),
        *_bundle_findings(entries, registry),
        *import_findings(session.outcomes, own),
        *(finding for outcome in session.outcomes for finding in _state_findings(outcome)),
    ]
    if session.error is not None:
        findings.append(Finding("wrong", distribution, "", f"nothing can be imported: {session.error}"))
    return tuple(findings)


def entries_of(distribution: str, registry: Registry) -> tuple[Entry, ...]:
    """Return the entry points of a distribution that belong to a group that there is."""
    known = {*registry.slots, *RESERVED}
    return tuple(e for e in registry.index.entries if _is(e.distribution, distribution) and e.slot in known)


def _is(name: str, distribution: str) -> bool:
    return normalise(name) == normalise(distribution)


def requirement_findings(distribution: str) -> Iterator[Finding]:
    """Compare what a distribution requires with what is installed, transom above all."""
    if _is(distribution, CORE):
        return
    from packaging.requirements import InvalidRequirement, Requirement

    names = []
    for text in requirements_of(distribution):
        try:
            names.append(normalise(Requirement(text).name))
        except InvalidRequirement:
            yield Finding("wrong", distribution, "Requires-Dist", f"requires {text!r}, which is no requirement")
            continue
        unmet = unmet_requirements((text,))
        hint = f"upgrade {distribution} or transom" if names[-1] == CORE else f"pip install '{text.partition(';')[0]}'"
        yield from (Finding("wrong", distribution, "Requires-Dist", f"requires {what}", hint=hint) for _, what in unmet)
    if CORE not in names:
        what = "does not say which transom it was written for"
        hint = f'dependencies = ["transom>={installed_version(CORE)}"]'
        yield Finding("note", distribution, "Requires-Dist", what, hint=hint)


def contract_findings(implementation: Implementation, registry: Registry) -> Iterator[Finding]:
    """Compare a card with its slot's contract and with what is installed here."""
    card, where = implementation.card, _where(implementation)
    if card is None:
        return
    try:
        slot = registry.slot(implementation.slot)
    except RegistryError:  # the finding is about the slot, and made where its entry point is examined
        return
    reason, hint = contract_refusal(implementation.distribution, card, slot)
    if reason:
        yield Finding("wrong", implementation.distribution, where, reason, hint=hint)


def _card_findings(implementation: Implementation, registry: Registry) -> Iterator[Finding]:
    card, owner, where = implementation.card, implementation.distribution, _where(implementation)
    if implementation.card_file is None:
        hint = f"transom.toml with a section [{implementation.slot}.{implementation.name}]; see transom schema card"
        top = implementation.module.partition(".")[0]
        yield Finding("wrong", owner, where, f"declares nothing: there is no card beside {top}/__init__.py", hint=hint)
    if card is None:
        return
    yield from contract_findings(implementation, registry)
    for _, what in unmet_requirements(card.requires):
        yield Finding("note", owner, where, f"requires {what}", hint=card.install)
    replacement = None if card.deprecated is None else card.deprecated.replacement
    if replacement is not None:
        try:
            registry.get(implementation.slot, replacement)
        except RegistryError as error:
            yield Finding("note", owner, where, f"names a replacement that is not here: {error.what.rstrip('.')}")


def _where(implementation: Implementation) -> str:
    return f"[transom.{implementation.slot}] {implementation.name}"


def _bundle_findings(entries: Iterable[Entry], registry: Registry) -> Iterator[Finding]:
    for entry in entries:
        if entry.group != BUNDLES:
            continue
        try:
            load_bundles(f"{entry.distribution}/{entry.name}", registry, Policy(), asked_by="transom check")
        except TransomError as error:
            where = f"[{entry.group}] {entry.name}"
            yield Finding("wrong", entry.distribution, where, error.what.rstrip("."), hint=error.hint)


def import_findings(outcomes: Iterable[Outcome], implementations: Iterable[Implementation]) -> Iterator[Finding]:
    """Say what came of imports.

    Args:
        outcomes: of a probe.
        implementations: of the same distribution. The import of one whose requirements are not met may fail.
    """
    lacking = {
        (c.slot, c.name): [what for _, what in unmet_requirements(c.card.requires)]
        for c in implementations
        if c.card is not None
    }
    for outcome in outcomes:
        entry = outcome.entry
        where, owner = f"[{entry.group}] {entry.name}", entry.distribution
        unmet = lacking.get((entry.slot, entry.name))
        if outcome.status != "ok" and unmet:
            what = f"{outcome.what}; it requires {', and '.join(unmet)}"
            yield Finding("note", owner, where, what, traceback=outcome.traceback)
        elif outcome.status != "ok":
            yield Finding("wrong", owner, where, outcome.what, traceback=outcome.traceback)
        for complaint in outcome.complaints:
            yield Finding("wrong", owner, where, complaint)


def _state_findings(outcome: Outcome) -> Iterator[Finding]:
    """Say what an import did to the state that all code in a process shares."""
    entry = outcome.entry
    module, where = entry.value.partition(":")[0].strip(), f"[{entry.group}] {entry.name}"
    hint = "do it where it is needed, in the module's constructor or forward, and undo it"
    for change in outcome.changes:
        yield Finding("wrong", entry.distribution, where, f"importing {module} changes {change}", hint=hint)
    if outcome.printed.strip():
        first = outcome.printed.strip().splitlines()[0][:200]
        yield Finding("wrong", entry.distribution, where, f"importing {module} prints {first!r}")
