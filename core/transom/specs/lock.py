"""A plan's resolutions as data: what was chosen, from which version, and why not the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from transom.errors import PlanMismatchError, SpecError
from transom.slots import SLOTS, ArchitectureRequest, Request

if TYPE_CHECKING:
    from transom.specs.plan import Node, Plan

__all__ = ["Lock", "LockedNode", "LockedRefusal", "read_lock"]

Mode = Literal["exact", "compatible", "free"]


class LockedRefusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An implementation that was tried first and could not serve."""

    ref: str
    stage: str
    reason: str


class LockedNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One node of a locked plan; the fields are those of the plan's node and its resolution."""

    path: str
    slot: str
    request: dict[str, Any]
    asked: list[str]
    chosen: str
    version: str
    entry_point: str
    api: str
    options: dict[str, Any] = {}
    refused: list[LockedRefusal] = []


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's resolutions, comparable with another plan.

    Args:
        lock: version of this format.
        transom: version of the core that made it.
        torch: version of torch.
        device: device type.
        dtype: of parameters.
        mode: ``"train"`` or ``"infer"``.
        nodes: one entry a node of the plan, the outer first.

    Example:
        >>> from transom import plan
        >>> p = plan("tiny-llama")
        >>> Lock.from_plan(p).differences(p, "exact")
        []
    """

    lock: Literal[1] = 1
    transom: str
    torch: str
    device: str
    dtype: str
    mode: str
    nodes: list[LockedNode]

    @staticmethod
    def from_plan(plan: Plan) -> Lock:
        """Lock a plan."""
        from importlib.metadata import version

        return Lock(
            transom=version("transom"),
            torch=version("torch"),
            device=plan.context.device,
            dtype=plan.context.dtype,
            mode=plan.context.mode,
            nodes=[_locked(node) for node in plan.nodes()],
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the lock as plain data; `read_lock` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    def differences(self, plan: Plan, mode: Mode = "compatible") -> list[str]:
        """Say where a plan departs from the lock.

        Args:
            plan: the plan to compare.
            mode: ``"exact"``: the same implementation from the same version of the same distribution everywhere;
                ``"compatible"``: the same implementation, under the same major slot contract; ``"free"``: anything.

        Returns:
            one line a difference; empty when the plan agrees.
        """
        if mode == "free":
            return []
        theirs = {node.path: node for node in self.nodes}
        ours = {node.path: _locked(node) for node in plan.nodes()}
        lines = [f"{path or 'the model'}: locked, but not in this plan" for path in theirs.keys() - ours.keys()]
        lines += [f"{path or 'the model'}: in this plan, but not locked" for path in ours.keys() - theirs.keys()]
        for path in theirs.keys() & ours.keys():
            lines += [f"{path or 'the model'}: {line}" for line in _compare(theirs[path], ours[path], mode)]
        return sorted(lines)

    def check(self, plan: Plan, mode: Mode = "compatible") -> None:
        """Refuse a plan that departs from the lock.

        Raises:
            PlanMismatchError: with one line a difference.
        """
        found = self.differences(plan, mode)
        if found:
            raise PlanMismatchError(
                f"the plan departs from its lock in {len(found)} place{'s' if len(found) > 1 else ''} ({mode}).",
                failed=found[:20] + ([f"... and {len(found) - 20} more"] if len(found) > 20 else []),
                hint="install what the lock names, lock anew, or compare less strictly (compatible, free)",
                differences=tuple(found),
            )


def read_lock(source: str | Path | dict[str, Any]) -> Lock:
    """Read a lock from a JSON file or from plain data.

    Raises:
        SpecError: no such file, or not a lock.
    """
    name = source if isinstance(source, str | Path) else "the mapping"
    try:
        if isinstance(source, dict):
            return msgspec.convert(source, Lock, strict=True)
        return msgspec.json.decode(Path(source).read_bytes(), type=Lock, strict=True)
    except OSError as error:
        raise SpecError(
            f"cannot read lock {str(name)!r}: {error.strerror}.", path="", file=str(name), line=None
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = f"{str(name)!r} is not a lock: {str(error)[:1].lower()}{str(error)[1:]}."
        raise SpecError(what, hint="make one with Lock.from_plan", path="", file=str(name), line=None) from error


def _locked(node: Node) -> LockedNode:
    chosen = node.resolution.chosen
    api = SLOTS[node.slot].api if node.slot in SLOTS else (1, 0)
    return LockedNode(
        path=node.path,
        slot=node.slot,
        request=_request_data(node.request),
        asked=list(node.resolution.asked),
        chosen=chosen.ref,
        version=chosen.version,
        entry_point=chosen.value,
        api=f"{api[0]}.{api[1]}",
        options={} if node.options is None else msgspec.to_builtins(node.options),
        refused=[
            LockedRefusal(ref=v.ref, stage=v.stage, reason=v.reason) for v in node.resolution.verdicts if not v.ok
        ],
    )


def _request_data(request: Request) -> dict[str, Any]:
    # The context stands once in the lock, and an architecture's config once in the spec.
    left_out = {"context", "config"} if isinstance(request, ArchitectureRequest) else {"context"}
    data = {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in left_out}
    return {k: sorted(v) if isinstance(v, frozenset) else msgspec.to_builtins(v) for k, v in data.items()}


def _compare(locked: LockedNode, now: LockedNode, mode: Mode) -> list[str]:
    lines = []
    if locked.slot != now.slot:
        lines.append(f"slot {locked.slot} was locked, now {now.slot}")
    if locked.chosen != now.chosen:
        lines.append(f"{locked.chosen} was locked, now {now.chosen}")
    elif mode == "exact" and (locked.version, locked.entry_point) != (now.version, now.entry_point):
        lines.append(f"{locked.chosen} {locked.version} was locked, now {now.version}")
    if locked.api.split(".")[0] != now.api.split(".")[0]:
        lines.append(f"slot contract {locked.api} was locked, now {now.api}")
    if locked.options != now.options:
        lines.append(f"options {locked.options} were locked, now {now.options}")
    if mode == "exact" and locked.request != now.request:
        lines.append("the request is not the same")
    return lines
