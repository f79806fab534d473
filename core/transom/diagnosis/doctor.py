"""What is wrong with this installation: the environment, the user's config, the policy, and every plugin."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from transom.diagnosis.check import contract_findings, entries_of, import_findings, requirement_findings
from transom.diagnosis.finding import Finding
from transom.diagnosis.fork_server import ForkServer, fork_server
from transom.diagnosis.probe import LIMIT, Outcome, Session, probe
from transom.diagnosis.promises import Promise, promise
from transom.errors import RegistryError, TransomError, UnknownImplementationError
from transom.registry.hooks import Hook, user_hooks
from transom.registry.names import near
from transom.registry.policy import VARIABLES, Policy
from transom.registry.registry import Registry
from transom.registry.scan import PREFIX, installed_version
from transom.registry.user_config import config_file, user_config
from transom.slots import SLOT_ALIASES
from transom.specs.bundle import GROUP as BUNDLES

__all__ = ["Diagnosis", "Examined", "diagnose"]

_WORKERS = 4


@dataclass(frozen=True)
class Examined:
    """One distribution that registers something.

    Args:
        name: as its metadata spells it.
        version: of it.
        location: the directory that holds its metadata.
        forbidden: why the policy keeps it from being chosen, and so from being imported here; `None` = it does not.
        outcomes: of importing what it registers.
        promises: what its cards declare, and whether it holds here.
    """

    name: str
    version: str
    location: str
    forbidden: str | None
    outcomes: tuple[Outcome, ...]
    promises: tuple[Promise, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        promises = [promise.to_dict() for promise in self.promises]
        return {**asdict(self), "outcomes": outcomes, "promises": promises}


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Args:
        environment: versions, devices, the config and the policy, as plain data.
        distributions: core first, then by name.
        findings: what is wrong, then notes.
    """

    environment: dict[str, Any]
    distributions: tuple[Examined, ...]
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "is_healthy": self.is_healthy,
            "environment": self.environment,
            "distributions": [each.to_dict() for each in self.distributions],
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose(registry: Registry, *, limit: float = LIMIT) -> Diagnosis:
    """Examine everything; every plugin that the policy allows is imported, in a process of its own.

    Args:
        registry: what is installed.
        limit: seconds that each import may take.
    """
    findings: list[Finding] = [Finding.of(problem) for problem in registry.problems() if problem.kind != "import"]
    policy = _policy(findings)
    hooks = _user_hooks(registry, policy, findings)
    findings += _order_findings(registry)
    findings += _variable_findings(os.environ)
    findings += [Finding("note", "", "policy", line) for line in policy.idle(registry.index.distributions)]
    names = sorted(registry.index.distributions, key=lambda name: (name != "transom", name.lower()))
    with fork_server() as server, ThreadPoolExecutor(_WORKERS) as pool:
        here = pool.submit(probe, (), limit=limit, with_devices=True, server=server)
        sessions = list(pool.map(lambda name: _probed(name, registry, policy, hooks, limit, server), names))
        machine = here.result()
    if machine.error is not None:
        findings.append(Finding("wrong", "", "torch", f"torch cannot be imported: {machine.error}"))
    devices = machine.machine.get("devices", [])
    examined = [
        _examined(name, registry, policy, session, devices) for name, session in zip(names, sessions, strict=True)
    ]
    for each, session in zip(examined, sessions, strict=True):
        findings += _findings(each, session, registry)
    findings.sort(key=lambda finding: not finding.is_wrong)
    return Diagnosis(_environment(machine, policy), tuple(examined), tuple(findings))


def _policy(findings: list[Finding]) -> Policy:
    """Return the policy that holds; what is wrong with it is noted, and then it forbids nothing."""
    try:
        return Policy.current()
    except RegistryError as error:
        findings.append(Finding("wrong", "", error.asked_by or "policy", error.what.rstrip("."), hint=error.hint))
        return Policy()


def _variable_findings(names: Iterable[str]) -> Iterator[Finding]:
    """Note environment variables that look like Transom's and that it does not read."""
    for name in sorted(names):
        if name.startswith("TRANSOM_") and name not in VARIABLES:
            guesses = near(name, VARIABLES)
            hint = f"{guesses[0]}?" if guesses else f"Transom reads {', '.join(VARIABLES)}"
            yield Finding("note", "", "environment", f"{name} is set, which nothing reads", hint=hint)


def _user_hooks(registry: Registry, policy: Policy, findings: list[Finding]) -> tuple[Hook, ...]:
    try:
        return tuple(asked.hook for asked in user_hooks(registry, policy))
    except TransomError as error:
        if error.what not in {f"{finding.what}." for finding in findings}:  # a config that cannot be read is told
            findings.append(Finding("wrong", "", error.asked_by or "hooks", error.what.rstrip("."), hint=error.hint))
        return ()


def _order_findings(registry: Registry) -> Iterator[Finding]:
    """Compare the user's ``auto`` orders with what is installed."""
    try:
        config = user_config()
    except RegistryError:  # told already
        return
    for slot in config.auto:
        where = f"auto.{slot} in {config_file()}"
        members = SLOT_ALIASES.get(slot, (slot,))
        unknown = [member for member in members if member not in registry.slots]
        if unknown:
            guesses = near(slot, [*registry.slots, *SLOT_ALIASES])
            hint = f"{guesses[0]}?" if guesses else None
            yield Finding("wrong", "", where, f"no slot is named {slot!r}", hint=hint)
            continue
        for name in config.order(members[0]):
            yield from _name_finding(members, name, registry, where)


def _name_finding(slots: tuple[str, ...], name: str, registry: Registry, where: str) -> Iterator[Finding]:
    for slot in slots:
        try:
            registry.get(slot, name)
        except UnknownImplementationError as error:
            yield Finding("note", "", where, f"{error.what.rstrip('.')}; it is passed over", hint=error.hint)
        except RegistryError as error:
            yield Finding("wrong", "", where, error.what.rstrip("."), hint=error.hint)


def _probed(
    name: str, registry: Registry, policy: Policy, hooks: tuple[Hook, ...], limit: float, server: ForkServer | None
) -> Session:
    if policy.refusal(name) is not None:
        return Session()
    entries = [entry for entry in entries_of(name, registry) if entry.group != BUNDLES]
    return probe(entries, limit=limit, ask=[hook.ref for hook in hooks], server=server)


def _examined(
    name: str, registry: Registry, policy: Policy, session: Session, devices: list[dict[str, Any]]
) -> Examined:
    entry = next(entry for entry in registry.index.entries if entry.distribution == name)
    own = [c for c in registry.implementations() if c.builder is None and c.distribution == name]
    promises = [found for implementation in own if (found := promise(implementation, devices)) is not None]
    return Examined(name, entry.version, entry.location, policy.refusal(name), session.outcomes, tuple(promises))


def _findings(examined: Examined, session: Session, registry: Registry) -> Iterator[Finding]:
    name = examined.name
    if examined.forbidden is not None:
        yield Finding("note", name, "policy", f"may not be chosen and was not imported: {examined.forbidden}")
    own = [c for c in registry.implementations() if c.builder is None and c.distribution == name]
    yield from requirement_findings(name)
    for implementation in own:
        yield from contract_findings(implementation, registry) if examined.forbidden is None else ()
        if implementation.card is None and implementation.card_error is None:
            where = f"[{PREFIX}{implementation.slot}] {implementation.name}"
            yield Finding("note", name, where, "declares nothing; only its own supports() is asked")
    yield from import_findings(session.outcomes, own)
    for each in examined.promises:
        if each.missing:
            where = f"[{PREFIX}{each.slot}] {each.name}"
            yield Finding("note", name, where, f"cannot serve here: {'; '.join(each.missing)}", hint=each.hint)
    if session.error is not None:
        yield Finding("wrong", name, "", f"nothing of it can be imported: {session.error}")


def _environment(session: Session, policy: Policy) -> dict[str, Any]:
    file = config_file()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "transom": installed_version("transom"),
        "torch": session.machine.get("torch") or installed_version("torch"),
        "devices": session.machine.get("devices", []),
        "config": {"file": str(file), "is_there": file.exists()},
        "policy": {
            "allow": list(policy.allow),
            "allow_from": policy.allow_from,
            "deny": list(policy.deny),
            "deny_from": policy.deny_from,
            "strict": policy.strict,
        },
    }
