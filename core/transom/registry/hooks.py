"""Hooks: what plugins do at certain moments, for every place of a model, because a spec or the user's config says so.

Installing one changes nothing: a hook runs only where it is named, in the order in which it is named. The moments are
those of `transom.registry.hook_specs`. A plugin registers an object that implements some of them, a class or a module
or an instance, in the entry-point group ``transom.hooks``. Each is imported alone: one that fails affects no other.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from transom.errors import AmbiguousNameError, HookError, PolicyError, SpecError
from transom.registry.hook_use import HookUse
from transom.registry.implementation import import_object
from transom.registry.names import near, normalise, parse_chain, split_reference
from transom.registry.user_config import config_file, user_config

if TYPE_CHECKING:
    from pluggy import HookImpl

    from transom.registry.policy import Policy
    from transom.registry.registry import Registry

__all__ = [
    "GROUP",
    "AskedHook",
    "Hook",
    "HookList",
    "LiveHook",
    "enabled_hooks",
    "find_hook",
    "load_hooks",
    "user_hooks",
]

GROUP = "transom.hooks"


@dataclass(frozen=True)
class Hook:
    """A hook that is installed. Making one imports nothing.

    Args:
        name: its bare name.
        distribution: the installed distribution that provides it.
        version: of the distribution.
        value: the entry point's value, ``"module:attribute"``.
        options: the hook's own typed options, validated; `None` when it takes none, or none were read yet.
    """

    name: str
    distribution: str
    version: str
    value: str
    options: Any = None

    @property
    def ref(self) -> str:
        """The qualified name, ``distribution/name``."""
        return f"{self.distribution}/{self.name}"

    @property
    def label(self) -> str:
        """Name, distribution and version, for people."""
        return f"{self.name} ({self.distribution} {self.version})"

    def load(self) -> LiveHook:
        """Import the hook, make an instance with its options where it is a class, and read what it implements.

        Raises:
            PluginImportError: when the import failed in any way.
            HookError: when it implements nothing, or something that there is not.
        """
        found = self.imported()
        try:
            return LiveHook(self, _functions(self, self._made(found) if isinstance(found, type) else found))
        except HookError:
            raise
        except Exception as error:
            error.add_note(f"while making the hook {self.label}")
            raise

    def imported(self) -> Any:
        """Import what the entry point refers to.

        Raises:
            PluginImportError: when that failed in any way.
        """
        return import_object(self.value, f"the hook {self.label}", slot="hooks", name=self.name)

    def examine(self) -> None:
        """Import the hook and see that it fits, without the options that only a spec or a user can give.

        Raises:
            PluginImportError, HookError: as `load`.
        """
        found = self.imported()
        if isinstance(found, type) and hasattr(found, "Options"):
            self._check_options(found)
            _functions(self, found)
        else:
            self.load()

    def _made(self, found: type) -> Any:
        if self.options is None:
            return found()
        self._check_options(found)
        return found(options=self.options)

    def _check_options(self, found: Any) -> None:
        if not (dataclasses.is_dataclass(found.Options) or issubclass(found.Options, msgspec.Struct)):
            raise _unfit(self, "has `Options` that is neither a dataclass nor a msgspec.Struct")
        try:
            inspect.signature(found).bind(options=self.options)
        except TypeError as error:
            raise _unfit(self, "has `Options`, and cannot be made with `options=` alone") from error


@dataclass(frozen=True)
class LiveHook:
    """A hook that was imported.

    Args:
        hook: which one.
        functions: what it implements, by name.
    """

    hook: Hook
    functions: Mapping[str, HookImpl]

    def call(self, moment: str, **arguments: Any) -> Any:
        """Call it at a moment; `None` where it does not implement that one.

        What it raises passes through, with a note that says whose hook it was.
        """
        implementation = self.functions.get(moment)
        if implementation is None:
            return None
        try:
            return implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception as error:
            at = f" at {arguments['path'] or 'the model'}" if "path" in arguments else ""
            error.add_note(f"in {moment} of the hook {self.hook.label}{at}")
            raise

    def error(self, moment: str, complaint: str) -> HookError:
        """Make an error of what it answered."""
        return HookError(
            f"{moment} of the hook {self.hook.label} {complaint}.",
            hint="report it to its authors, or do not name the hook",
            hook=self.hook.ref,
        )


def _functions(hook: Hook, plugin: object) -> dict[str, HookImpl]:
    """Read what a hook implements; pluggy compares it with the specifications."""
    import pluggy

    from transom.registry.hook_specs import PROJECT, HookSpecs

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    try:
        manager.register(plugin, name=hook.ref)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        complaint = " ".join(str(error).split())
        raise _unfit(hook, f"does not fit: {complaint}") from error
    callers = manager.get_hookcallers(plugin) or ()
    functions = {caller.name: implementation for caller in callers for implementation in caller.get_hookimpls()}
    if not functions:
        raise _unfit(hook, "marks no function with transom.hookimpl")
    for name, implementation in functions.items():
        if implementation.wrapper or implementation.hookwrapper:
            raise _unfit(hook, f"has {name} as a wrapper: hooks run one after another, and none inside another")
    return functions


def _unfit(hook: Hook, complaint: str) -> HookError:
    from transom.registry.hook_specs import HookSpecs

    moments = [name for name in vars(HookSpecs) if name.startswith("transom_")]
    return HookError(f"the hook {hook.label} {complaint}.", available=moments, hook=hook.ref)


def find_hook(ref: str, registry: Registry, policy: Policy, *, asked_by: str) -> Hook:
    """Find the hook of a name; nothing is imported.

    Args:
        ref: bare or qualified name.
        registry: what is installed.
        policy: which distributions may be drawn on.
        asked_by: who names it, for errors.

    Raises:
        HookError: when nothing has this name.
        AmbiguousNameError: when several distributions have this bare name.
        PolicyError: when the policy forbids its distribution.
    """
    distribution, name = split_reference(ref)
    installed = [Hook(e.name, e.distribution, e.version, e.value) for e in registry.index.group(GROUP)]
    found = [hook for hook in installed if hook.name == name]
    if distribution is not None:
        found = [hook for hook in found if normalise(hook.distribution) == normalise(distribution)]
    if not found:
        raise _unknown(ref, installed, asked_by)
    if len(found) > 1:
        refs = tuple(hook.ref for hook in found)
        raise AmbiguousNameError(
            f"a hook {name!r} is registered by {len(found)} distributions.",
            asked_by=asked_by,
            available=[hook.label for hook in found],
            hint=f"write {' or '.join(refs)}",
            slot="hooks",
            name=name,
            candidates=refs,
        )
    refusal = policy.refusal(found[0].distribution)
    if refusal is not None:
        what = f"the hook {found[0].label} may not run: {refusal}."
        raise PolicyError(what, asked_by=asked_by, distribution=found[0].distribution)
    return found[0]


def _unknown(ref: str, installed: Sequence[Hook], asked_by: str) -> HookError:
    distribution, name = split_reference(ref)
    own = [hook for hook in installed if normalise(hook.distribution) == normalise(distribution or "")]
    what, hint = f"no hook is named {ref!r}.", "install the distribution that provides it, or remove the name"
    if own:
        what = f"no hook is named {ref!r}: {own[0].distribution} {own[0].version} has none of this name."
        hint = f"write {' or '.join(hook.ref for hook in own)}, or remove the name"
    elsewhere = [hook.ref for hook in installed if hook.name == name]
    guesses = elsewhere or near(name, [hook.name for hook in own or installed])
    return HookError(
        what,
        asked_by=asked_by,
        available=[hook.label for hook in own or installed] or ["none is installed"],
        hint=f"{', '.join(guesses)}?" if guesses else hint,
        hook=ref,
    )


@dataclass(frozen=True)
class HookList:
    """Hooks that one place names, in order.

    Args:
        entries: names, or names with options.
        source: the place: a spec, a bundle, a file.
        lines: line of each value there, by its path, as far as known.
    """

    entries: Sequence[str | HookUse]
    source: str
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)

    @property
    def asked_by(self) -> str:
        """Who names them, for errors."""
        return f"hooks in {self.source}"


@dataclass(frozen=True)
class AskedHook:
    """A hook that is named, with the options that it is to get. Making one imports nothing.

    Args:
        hook: which one, its options not read yet.
        options: as they were written.
        place: the list that they stand in.
        index: the place within the list.
    """

    hook: Hook
    options: Mapping[str, Any]
    place: HookList
    index: int


def user_hooks(registry: Registry, policy: Policy) -> tuple[AskedHook, ...]:
    """Return the hooks that the user's config names; nothing is imported."""
    return enabled_hooks([HookList(user_config().hooks, str(config_file()))], registry, policy)


def enabled_hooks(lists: Iterable[HookList], registry: Registry, policy: Policy) -> tuple[AskedHook, ...]:
    """Find the hooks of several lists, in order.

    One that several lists name runs once, at its first place, with the options of the last list that gives it some.

    Args:
        lists: who names what.
        registry: what is installed.
        policy: which distributions may be drawn on.

    Raises:
        SpecError: when a name is malformed or a hook stands twice in a list.
        HookError, AmbiguousNameError, PolicyError: as `find_hook`.
    """
    found: dict[str, AskedHook] = {}
    for each in lists:
        for ref, asked in _found_in(each, registry, policy).items():
            if ref not in found or asked.options:
                found[ref] = asked
    return tuple(found.values())


def _found_in(place: HookList, registry: Registry, policy: Policy) -> dict[str, AskedHook]:
    uses = [HookUse.of(entry) for entry in place.entries]
    names = parse_chain([use.hook for use in uses], asked_by=place.asked_by) if uses else ()
    found: dict[str, AskedHook] = {}
    for index, (name, use) in enumerate(zip(names, uses, strict=True)):
        hook = find_hook(name, registry, policy, asked_by=place.asked_by)
        if hook.ref in found:
            what = f"{names[found[hook.ref].index]!r} and {name!r} are one hook."
            raise SpecError(what, asked_by=place.asked_by, hint="name it once", path="hooks", file=None, line=None)
        found[hook.ref] = AskedHook(hook, use.options, place, index)
    return found


def load_hooks(hooks: Iterable[Hook]) -> tuple[LiveHook, ...]:
    """Import hooks; classes are instantiated anew, so that nothing passes from one model to the next."""
    return tuple(hook.load() for hook in hooks)
