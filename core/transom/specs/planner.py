"""The walk from a spec to a tree of nodes: each implementation says what is inside it, `use` says who fills it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transom.errors import BuildError, ResolutionError, SpecError, UnknownImplementationError
from transom.registry.implementation import REGISTERED, Implementation
from transom.registry.names import AUTO
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.resolve import Resolution, parse_chain, resolve
from transom.registry.submodules import declared_parts, unreceived
from transom.registry.verdict import Verdict, asked_of_card
from transom.slots import SLOTS, Part, Request, Slot
from transom.slots.norm_linear import SEPARATE
from transom.specs.bundle import Bundle, load_bundles
from transom.specs.idle_options import IdleOptions
from transom.specs.node import Node
from transom.specs.norm_pairs import NormPairs, NormPlace
from transom.specs.read import check_plain
from transom.specs.spec import ModelSpec
from transom.specs.typed_options import Written, typed_options
from transom.specs.use import Layer, Rules, named
from transom.transformer.parts import norm_linear

if TYPE_CHECKING:
    from transom.specs.lock import Lock, LockedNode

__all__ = ["Planner", "Use"]

Use = Mapping[str, str | Sequence[str]]
Options = Mapping[str, Mapping[str, Any]]


@dataclass
class Planner:
    """Resolves the places of one spec.

    Args:
        spec: what the user wrote.
        use: entries of the call, which win over the spec's at equal specificity.
        options: likewise.
        registry: where names are looked up.
        lock: whose choices are taken where it has a place; `None` = the spec alone decides.
    """

    spec: ModelSpec
    use: Use
    options: Options
    registry: Registry
    lock: Lock | None = None
    bundles: tuple[Bundle, ...] = field(init=False)
    idle_options: IdleOptions = field(init=False, default_factory=IdleOptions)

    def __post_init__(self) -> None:
        spec, given = self.spec, "the call's arguments"
        self._policy = Policy.current()
        self.bundles = load_bundles(spec.bundle, self.registry, self._policy, asked_by=f"bundle in {spec.source}")
        self._use = Rules(
            "use",
            [_chains(spec.use, spec.source, _lines(spec, "use"), spec.names()), _chains(self.use, given)],
            self.registry.slots,
            presets=[_chains(bundle.data.use, bundle.label) for bundle in self.bundles],
        )
        check_plain(self.options, {}, given)
        self._options: Rules[Mapping[str, Any]] = Rules(
            "options",
            [Layer(spec.options, spec.source, lines=_lines(spec, "options")), Layer(self.options, given)],
            self.registry.slots,
            presets=[Layer(bundle.data.options, bundle.label) for bundle in self.bundles],
        )
        self._locked = {} if self.lock is None else {(node.path, node.slot): node for node in self.lock.nodes}
        self._slots: dict[str, Slot] = {}
        self._known: dict[tuple[Any, ...], Resolution] = {}
        self._norms = NormPairs(self._use, self.registry, () if self.lock is None else self._locked)

    def tree(self, part: Part) -> Node:
        """Resolve a place and everything below it.

        Raises:
            SpecError: an entry matches nothing or contradicts another, or an option is wrong.
            ResolutionError: nobody can serve a place.
        """
        root = self._node("", part)
        self._use.check_all_matched((node.path, node.slot) for node in root.nodes())
        self._options.check_all_matched((node.path, node.slot) for node in root.nodes())
        for line in self.idle_options.told():
            self.registry.tell_once(logging.INFO, line)
        return root

    def sources(self) -> dict[str, str]:
        """Distributions beside those of the chosen that the tree draws on, with versions: of bundles and of slots."""
        found = {bundle.distribution: bundle.version for bundle in self.bundles}
        for slot in self._slots.keys() - SLOTS.keys():
            found |= {entry.distribution: entry.version for entry in self.registry.table.slots.get(slot, ())}
        return dict(sorted(found.items()))

    def _node(self, path: str, part: Part, norm: NormPlace | None = None) -> Node:
        """Resolve a place; ``norm`` is the one before it that feeds nothing else, which it may fill too."""
        part, resolution, asked_by = self._served(path, part, norm)
        if norm is not None and (part.slot == "norm_linear" or _includes_norm(resolution.chosen)):
            self._norms.take(norm, path, resolution, asked_by)
            norm = None
        builder = resolution.chosen.load()
        options = self._typed_options(path, part.slot, builder, resolution) if self._options.rules else None
        describe, has_parts = getattr(builder, "describe", None), hasattr(builder, "parts")
        return Node(
            path=path,
            slot=part.slot,
            request=part.request,
            asked_by=asked_by,
            resolution=resolution,
            options=options,
            note="" if describe is None else describe(part.request, options),
            parts=self._parts(path, resolution.chosen, part.request, options, norm) if has_parts else {},
            api=self._slot(part.slot).api,
        )

    def _slot(self, name: str) -> Slot:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = self.registry.slot(name)
        return slot

    def _served(self, path: str, part: Part, norm: NormPlace | None) -> tuple[Part, Resolution, str]:
        """Say who serves a place, together with the norm before it or by itself, and who asked for that."""
        passed_over: tuple[Verdict, ...] = ()
        if norm is not None and part.reads_input:
            names, asked, asked_by = self._norms.asked(path, norm)
            try:
                if names:
                    pair = norm_linear(norm.part, part)
                    found = self._resolution(path, pair, names, asked_by, last_resort=SEPARATE in asked)
                    return pair, replace(found, asked=asked), asked_by
            except ResolutionError as error:
                if SEPARATE not in asked or error.resolution is None:
                    raise
                passed_over = error.resolution.refused
        asked, asked_by = self._asked(path, part.slot)
        found = self._resolution(path, part, asked, asked_by)
        if passed_over:
            found = replace(found, verdicts=(*passed_over, *found.verdicts))
        return part, found, asked_by

    def _asked(self, path: str, slot: str) -> tuple[tuple[str, ...], str]:
        rule = self._use.find(path, slot, accept=self._norms.is_of_one_place)
        if rule is not None:
            return rule.value, rule.place
        if slot == "model":
            where = f"model in {self.spec.source}"
            return parse_chain(self.spec.model, asked_by=where), where
        default = self._slot(slot).default
        if default is None:
            raise SpecError(
                f"the spec names nobody for {path} and slot {slot} has no default.",
                asked_by=self.spec.source,
                available=[i.ref for i in self.registry.implementations(slot)],
                hint=f"use: {{{slot}: NAME}}",
                path=f"use.{slot}",
                file=self.spec.source,
                line=None,
            )
        return (default,), f"the default of slot {slot}"

    def _resolution(
        self, path: str, part: Part, asked: tuple[str, ...], asked_by: str, *, last_resort: bool = False
    ) -> Resolution:
        locked = self._locked.get((path, part.slot)) if self._locked else None
        if locked is not None:
            return _as_locked(locked, asked, self._chosen_by(locked, part))
        if self.lock is not None:
            # Not in the lock, which the comparison will tell; until then anything that is installed may stand here.
            return resolve(part.slot, asked, part.request, asked_by=asked_by, registry=default_registry())
        return self._resolve(part, asked, asked_by, last_resort=last_resort)

    def _chosen_by(self, locked: LockedNode, part: Part) -> Resolution:
        """Resolve a place to whom the lock names there."""
        try:
            return self._resolve(part, (locked.chosen,), f"the lock, at {locked.path or 'model'}")
        except UnknownImplementationError as error:
            distribution = locked.chosen.partition("/")[0]
            if distribution == REGISTERED:
                raise
            hint = f"pip install {distribution}=={locked.version}"
            raise UnknownImplementationError(
                error.what, asked_by=error.asked_by, available=error.available, hint=hint, **error.data
            ) from error

    def _resolve(self, part: Part, names: tuple[str, ...], asked_by: str, *, last_resort: bool = False) -> Resolution:
        alike = (part.slot, names, *asked_of_card(part.request))
        found = self._known.get(alike) or self._known.get((part.slot, names, part.request))
        if found is None:
            found = resolve(
                part.slot,
                names,
                part.request,
                asked_by=asked_by,
                registry=self.registry,
                policy=self._policy,
                goes_on=last_resort,
            )
            self._known[alike if found.rests_on_card else (part.slot, names, part.request)] = found
        return found

    def _parts(
        self, path: str, chosen: Implementation, request: Request, options: Any, norm: NormPlace | None
    ) -> dict[str, Node | tuple[Node, ...]]:
        builder = chosen.load()
        try:
            declared = declared_parts(builder, request, options)
        except Exception as error:
            error.add_note(f"while asking {chosen.slot} {chosen.label}, at {path or 'the model'}, for its parts")
            raise
        if not declared:
            return {}
        lost = unreceived(builder, declared)
        if lost:
            raise BuildError(
                f"{path or 'the model'}, {chosen.slot} {chosen.label}: `parts` asks for {', '.join(lost)}, for which "
                "its `Submodules` has no field.",
                hint=f"report it to the authors of {chosen.distribution}",
                path=path,
            )
        norms = {
            part.feeds: NormPlace(_join(path, part.path or name), part)
            for name, part in declared.items()
            if isinstance(part, Part) and part.feeds is not None
        }
        found: dict[str, Node | tuple[Node, ...]] = dict.fromkeys(declared, ())
        # Norms come last: what they feed may have taken them in.
        for name, part in sorted(declared.items(), key=_feeds) if norms else declared.items():
            if isinstance(part, Part):
                inner = _join(path, part.path or name)
                before = norms.get(name, norm if part.reads_input else None)
                found[name] = self._norms.taken(inner) or self._node(inner, part, before)
            else:
                each = ((p.path or f"{name}.{i}", p) for i, p in enumerate(part))
                found[name] = tuple(self._node(_join(path, inner), p) for inner, p in each)
        return found

    def _typed_options(self, path: str, slot: str, builder: Any, resolution: Resolution) -> Any:
        chosen, declared = resolution.chosen, getattr(builder, "Options", None)
        ref = chosen.ref
        asked = {*resolution.asked, *(name.rpartition("/")[2] for name in resolution.asked)}
        names = {AUTO, chosen.name, ref}
        said = self._use.presets(path, slot).items()
        without = {bundle for bundle, chains in said if not any(names & set(chain) for chain in chains)}
        replaced = self._replaced(path, slot, names, takes_options=declared is not None)
        rule = self._options.find(
            path,
            slot,
            asked=asked,
            chosen=(chosen.name, ref),
            idle=lambda each: each.source in without or (replaced and each.of is None and each.layer == each.tier == 0),
        )
        if rule is None:
            return None
        if rule.layer == rule.tier == 0:
            self.idle_options.hold(rule, path)
        written = Written(rule.value, f"options.{rule.pattern}", rule.where, rule.source)
        if rule.source == self.spec.source:
            written = written.at(("options", rule.pattern), self.spec.lines())
        other = next((name for name in resolution.asked if name not in names), "NAME")
        hint = (
            f"remove the entry, or write options.{rule.target}/{other}: {{...}}, which holds only where "
            f"{other} is chosen"
        )
        return typed_options(declared, written, ref, slot=slot, name=ref, hint=None if rule.of else hint)

    def _replaced(self, path: str, slot: str, names: set[str], *, takes_options: bool) -> bool:
        """Whether the call gives a place to another than the spec does; the options that this makes idle are noted."""
        accept = (lambda rule: True) if slot == "norm_linear" else self._norms.is_of_one_place
        use = self._use.find(path, slot, accept=accept)
        if use is None or use.layer == 0:
            return False
        rule = self._use.find(path, slot, accept=lambda each: each.layer == 0 and accept(each))
        if rule is None and takes_options and slot != "model":  # they were meant for whoever is named
            return False
        default = self.spec.model if slot == "model" else self.registry.slot(slot).default or SEPARATE
        own = parse_chain(default) if rule is None else rule.value
        if own[0] in names - {AUTO} or (takes_options and names & set(own)):
            return False
        meant = {*own, *(name.rpartition("/")[2] for name in own)}
        meant |= {each.ref for each in self.registry.implementations(slot) if each.name in own}
        idle = self._options.find(
            path, slot, asked=meant, chosen=meant, accept=lambda each: each.layer == each.tier == 0
        )
        if idle is not None and (idle.of is None or idle.of not in names):
            self.idle_options.drop(idle, path, use)
        return True


def _includes_norm(chosen: Implementation) -> bool:
    return chosen.card is not None and chosen.card.includes_norm


def _feeds(item: tuple[str, Part | Sequence[Part]]) -> bool:
    return getattr(item[1], "feeds", None) is not None


def _as_locked(locked: LockedNode, asked: tuple[str, ...], found: Resolution) -> Resolution:
    """Give the lock's choice with what the spec asks for now, and the refusals that led to the choice."""
    refused = tuple(Verdict(locked.slot, old.ref, False, old.stage, old.reason) for old in locked.refused)
    return Resolution(found.slot, asked, (*refused, *found.verdicts), found.chosen)


def _chains(
    use: Use, source: str, lines: Mapping[str, int] | None = None, names: Mapping[str, str] | None = None
) -> Layer[tuple[str, ...]]:
    names = named(use, source) | dict(names or {})
    chains = {pattern: parse_chain(value, asked_by=names[pattern]) for pattern, value in use.items()}
    return Layer(chains, source, names, lines or {})


def _lines(spec: ModelSpec, field: str) -> dict[str, int]:
    """Return the line of each entry of a field of the spec."""
    return {str(key[1]): line for key, line in spec.lines().items() if len(key) == 2 and key[0] == field}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
