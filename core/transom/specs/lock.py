"""A plan's resolutions as data: what was chosen, from which version, and why not the others."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from transom.errors import PlanMismatchError, SpecError
from transom.registry.implementation import REGISTERED
from transom.registry.names import AUTO, split_reference
from transom.registry.registry import Registry, default_registry
from transom.registry.scan import index_of
from transom.registry.verdict import Stage
from transom.slots import ArchitectureRequest, Request
from transom.specs.convert import convert
from transom.specs.read import check_plain, read_text

if TYPE_CHECKING:
    from transom.registry.hooks import Hook
    from transom.specs.node import Node
    from transom.specs.plan import Plan

__all__ = [
    "Lock",
    "LockedHook",
    "LockedNode",
    "LockedRefusal",
    "Mode",
    "check_mode",
    "lock_hook",
    "lock_node",
    "read_lock",
]

Mode = Literal["exact", "compatible", "free"]

Ref = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Distribution = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

_SHOWN = 20  # differences in an error's text; its attribute holds all
_OF_LAYER = re.compile(r"([^:]*?\blayers\.)(\d+)((?:\.[^:]*)?: .*)", re.DOTALL)
_MAX_ITEMS = 10_000_000
_MAX_TEXT = 200_000_000


class LockedRefusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An implementation that was tried first and could not serve."""

    ref: str
    stage: Stage
    reason: str


class LockedNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One node of a locked plan; the fields are those of the plan's node and its resolution."""

    path: str
    slot: str
    request: dict[str, Any]
    asked: list[str]
    chosen: Ref
    version: str
    entry_point: str
    api: Annotated[str, Meta(pattern=r"^[0-9]{1,6}\.[0-9]{1,6}$")]
    options: dict[str, Any] = {}
    refused: list[LockedRefusal] = []


class LockedHook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A hook that ran."""

    hook: str
    version: str
    entry_point: str
    options: dict[str, Any] = {}


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A plan's resolutions, comparable with another plan, and enough to make the same plan elsewhere.

    Args:
        lock: version of this format.
        name: of the model.
        transom: version of the core that made it.
        torch: version of torch.
        device: device type.
        dtype: of parameters.
        mode: ``"train"`` or ``"infer"``.
        sources: distributions that bundles and slots came from, with their versions.
        hooks: the hooks that ran, in order.
        nodes: one entry a node of the plan, the outer first.

    Example:
        >>> from transom import plan
        >>> p = plan("tiny-llama")
        >>> Lock.from_plan(p).differences(p, "exact")
        []
    """

    lock: Literal[1]
    name: str = "model"
    transom: str
    torch: str
    device: str
    dtype: str
    mode: str
    sources: dict[str, str] = {}
    hooks: list[LockedHook] = []
    nodes: list[LockedNode]

    def __post_init__(self) -> None:
        paths = [node.path for node in self.nodes]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"nodes: {twice!r} stands twice")

    @staticmethod
    def from_plan(plan: Plan) -> Lock:
        """Lock a plan."""
        from importlib.metadata import version

        return Lock(
            lock=1,
            name=plan.spec.name,
            transom=version("transom"),
            torch=version("torch"),
            device=plan.context.device,
            dtype=plan.context.dtype,
            mode=plan.context.mode,
            sources=dict(plan.sources),
            hooks=[lock_hook(hook) for hook in plan.hooks],
            nodes=[lock_node(node) for node in plan.nodes()],
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the lock as plain data; `read_lock` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    def to_text(self) -> str:
        """Give the lock as JSON with a line for every node, so that line-wise comparison of two files reads well."""
        fields = self.to_dict()
        nodes = ",\n".join(f"  {json.dumps(node)}" for node in fields.pop("nodes"))
        head = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in fields.items())
        return f'{{\n{head} "nodes": [\n{nodes}\n ]\n}}\n'

    @property
    def distributions(self) -> tuple[str, ...]:
        """Every distribution that the plan draws on, sorted."""
        chosen = {node.chosen.partition("/")[0] for node in self.nodes}
        hooks = {split_reference(each.hook)[0] or REGISTERED for each in self.hooks}
        return tuple(sorted(chosen | hooks | self.sources.keys()))

    def registry(self) -> Registry:
        """Give a registry of the lock's distributions alone: no other is looked at.

        Where the program registered something itself, that is this process's registry.
        """
        return default_registry() if REGISTERED in self.distributions else Registry(index_of(self.distributions))

    def differences(self, plan: Plan, mode: Mode = "compatible") -> list[str]:
        """Say where a plan departs from the lock.

        Args:
            plan: the plan to compare.
            mode: ``"exact"``: the same implementation from the same version of the same distribution everywhere, asked
                for alike, under the same torch; ``"compatible"``: the same implementation, one that the spec asks for,
                under the same major slot contract and with the same options; ``"free"``: anything.

        Returns:
            one line a difference, in the order of the model; empty when the plan agrees.

        Raises:
            SpecError: there is no such mode.
        """
        check_mode(mode)
        if mode == "free":
            return []
        now = {node.path: lock_node(node) for node in plan.nodes()}
        then = {node.path: node for node in self.nodes}
        lines = [] if mode != "exact" else list(_differing_facts(self, Lock.from_plan(plan)))
        lines += _differing_hooks(self.hooks, [lock_hook(hook) for hook in plan.hooks], mode)
        for path in dict.fromkeys([*then, *now]):
            place = path or "the model"
            if path not in now:
                lines.append(f"{place}: locked, but not in this plan")
            elif path not in then:
                lines.append(f"{place}: in this plan, but not locked")
            else:
                lines += [f"{place}: {line}" for line in _compare(then[path], now[path], mode)]
        return lines

    def check(self, plan: Plan, mode: Mode = "compatible", *, asked_by: str | None = None) -> None:
        """Refuse a plan that departs from the lock.

        Raises:
            PlanMismatchError: with one line a difference.
        """
        found = self.differences(plan, mode)
        if found:
            lines = _folded(found)
            more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            raise PlanMismatchError(
                f"the plan departs from its lock in {len(found)} place{'s' if len(found) > 1 else ''} ({mode}).",
                asked_by=asked_by,
                failed=lines[:_SHOWN] + more,
                hint=_mending(found, plan, mode),
                differences=tuple(found),
            )


def _folded(lines: list[str]) -> list[str]:
    """Tell in one line what several layers have alike: ``layers.0 to 3.mlp: ...``."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        found = _OF_LAYER.fullmatch(line)
        before, number, after = found.groups() if found else (line, "0", "")
        numbers.setdefault((before, after), []).append(int(number))
    return [f"{before}{_numbers(each)}{after}" if after else before for (before, after), each in numbers.items()]


def _numbers(found: list[int]) -> str:
    """Write numbers: as a range where they follow each other."""
    if len(found) > 1 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found))


def _mending(differences: list[str], plan: Plan, mode: Mode) -> str:
    """Say what to do about differences; first of all, which choices of the call itself made some."""
    places = {line.partition(": ")[0] for line in differences}
    asked = dict.fromkeys(node.asked_by for node in plan.nodes() if (node.path or "the model") in places)
    given = [each for each in asked if each.startswith("--use ") or each.endswith(" in the call's arguments")]
    looser = get_args(Mode)[get_args(Mode).index(mode) + 1 :]
    hint = f"install what the lock names, lock anew, or compare less strictly (--lock-mode {' or '.join(looser)})"
    return f"leave out {', '.join(given)}; or {hint}" if given else hint


def check_mode(mode: str) -> None:
    """Refuse a mode that there is not.

    Raises:
        SpecError: with the modes that there are.
    """
    if mode not in get_args(Mode):
        near = difflib.get_close_matches(str(mode), get_args(Mode), n=1)
        raise SpecError(
            f"no lock mode is named {mode!r}.",
            available=get_args(Mode),
            hint=f"{near[0]}?" if near else None,
            path="lock_mode",
            file=None,
            line=None,
        )


def read_lock(source: str | Path | dict[str, Any] | Lock) -> Lock:
    """Read a lock from a JSON file or from plain data; a `Lock` is returned as it is.

    Raises:
        SpecError: no such file, or not a lock.
    """
    if isinstance(source, Lock):
        return source
    if isinstance(source, dict):
        check_plain(source, {}, "the lock", max_items=_MAX_ITEMS)
        return convert(source, Lock, source="the lock")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        what = f"cannot read lock {str(source)!r}: {reason}."
        raise SpecError(what, hint="transom lock SPEC makes one", path="", file=str(source), line=None) from error
    data, lines = read_text(text, "json", file=path.name, max_items=_MAX_ITEMS, max_text=_MAX_TEXT)
    return convert(data, Lock, source=path.name, lines=lines)


def lock_node(node: Node) -> LockedNode:
    """Give a node of a plan as it is locked."""
    chosen = node.resolution.chosen
    return LockedNode(
        path=node.path,
        slot=node.slot,
        request=_request_data(node.request),
        asked=list(node.resolution.asked),
        chosen=chosen.ref,
        version=chosen.version,
        entry_point=chosen.value,
        api=f"{node.api[0]}.{node.api[1]}",
        options={} if node.options is None else _plain(node.options),
        refused=[LockedRefusal(ref=v.ref, stage=v.stage, reason=v.reason) for v in node.resolution.refused],
    )


def lock_hook(hook: Hook) -> LockedHook:
    """Give a hook as it is locked."""
    options = {} if hook.options is None else _plain(hook.options)
    return LockedHook(hook=hook.ref, version=hook.version, entry_point=hook.value, options=options)


def _request_data(request: Request) -> dict[str, Any]:
    # The context stands once in the lock, and an architecture's configs once in the spec.
    left_out = {"context", "config", "encoder_config"} if isinstance(request, ArchitectureRequest) else {"context"}
    data = {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in left_out}
    return _plain(data)


def _plain(value: Any) -> dict[str, Any]:
    """Give something as it is read back from a file, where a tuple is a list and a set has an order."""
    fields = value if isinstance(value, dict) else msgspec.to_builtins(value)
    return {k: msgspec.json.decode(msgspec.json.encode(v, order="deterministic")) for k, v in fields.items()}


def _differing_facts(then: Lock, now: Lock) -> Iterator[str]:
    for name in ("torch", "device", "dtype", "mode"):
        if getattr(then, name) != getattr(now, name):
            yield f"{name} {getattr(then, name)} was locked, now {getattr(now, name)}"
    for distribution in sorted(then.sources.keys() | now.sources.keys()):
        versions = [lock.sources.get(distribution, "none") for lock in (then, now)]
        if versions[0] != versions[1]:
            yield f"{distribution} {versions[0]} was locked, now {versions[1]}"


def _differing_hooks(then: list[LockedHook], now: list[LockedHook], mode: Mode) -> Iterator[str]:
    names = [[each.hook for each in hooks] for hooks in (then, now)]
    if names[0] != names[1]:
        told = [", ".join(each) or "none" for each in names]
        yield f"hooks {told[0]} were locked, now {told[1]} run"
        return
    for old, new in zip(then, now, strict=True):
        if mode == "exact" and (old.version, old.entry_point) != (new.version, new.entry_point):
            locked, running = (f"{each.version} ({each.entry_point})" for each in (old, new))
            yield f"hook {old.hook} {locked} was locked, now {running}"
        if old.options != new.options:
            yield f"hook {old.hook}: options {old.options} were locked, now {new.options}"


def _compare(then: LockedNode, now: LockedNode, mode: Mode) -> Iterator[str]:
    if then.slot != now.slot:
        yield f"slot {then.slot} was locked, now {now.slot}"
    if then.chosen != now.chosen:
        yield f"{then.chosen} was locked, now {now.chosen}"
    elif mode == "exact" and (then.version, then.entry_point) != (now.version, now.entry_point):
        yield f"{then.chosen} {then.version} ({then.entry_point}) was locked, now {now.version} ({now.entry_point})"
    elif not _is_asked(now) or (mode == "exact" and then.asked != now.asked):
        yield f"{then.chosen} was locked for {' | '.join(then.asked)}, now {' | '.join(now.asked)} is asked for"
    if then.api.split(".")[0] != now.api.split(".")[0]:
        yield f"slot contract {then.api} was locked, now {now.api}"
    if then.options != now.options:
        yield f"options {then.options} were locked, now {now.options}"
    if mode == "exact" and then.request != now.request:
        yield f"another request was locked: {', '.join(_differing_fields(then.request, now.request))}"


def _is_asked(node: LockedNode) -> bool:
    """Whether the names that are asked for lead to the chosen one."""
    return any(name in (AUTO, node.chosen, split_reference(node.chosen)[1]) for name in node.asked)


def _differing_fields(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            yield f"{name} {then.get(name)} was locked, now {now.get(name)}"
