"""Which hooks run for a spec, with which options, and what they make of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from transom.errors import HookError
from transom.registry.hooks import AskedHook, Hook, HookList, LiveHook, enabled_hooks
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.user_config import config_file, user_config
from transom.specs.bundle import load_bundles
from transom.specs.spec import ModelSpec
from transom.specs.typed_options import Written, typed_options

__all__ = ["hooks_of", "modified", "with_options"]


def hooks_of(spec: ModelSpec, registry: Registry, *, is_locked: bool = False) -> tuple[Hook, ...]:
    """Find the hooks that run for a spec: those of the user's config, of its bundles, and its own, in this order.

    Args:
        spec: what the user wrote.
        registry: what is installed, or, under a lock, what the lock names.
        is_locked: look elsewhere too for a hook that the registry does not know; the comparison with the lock will
            tell that it was not locked.

    Returns:
        the hooks, imported, with their typed options.

    Raises:
        HookError, AmbiguousNameError, PolicyError: as `transom.registry.hooks.enabled_hooks`.
        SpecError: as that, or an option is wrong.
        PluginImportError: a hook cannot be imported.
    """
    if not (spec.hooks or spec.bundle or user_config().hooks):
        return ()
    asked = list(_asked(spec, registry))
    try:
        return with_options(enabled_hooks(asked, registry, Policy.current()))
    except HookError:
        if not is_locked:
            raise
        return with_options(enabled_hooks(asked, default_registry(), Policy.current()))


def _asked(spec: ModelSpec, registry: Registry) -> Iterator[HookList]:
    yield HookList(user_config().hooks, str(config_file()))
    for bundle in load_bundles(spec.bundle, registry, Policy.current(), asked_by=f"bundle in {spec.source}"):
        yield HookList(bundle.data.hooks, bundle.label)
    yield HookList(spec.hooks, spec.source, spec.lines())


def with_options(asked: Iterable[AskedHook]) -> tuple[Hook, ...]:
    """Import hooks and read the options that they are to get.

    Raises:
        PluginImportError: a hook cannot be imported.
        SpecError: an option is unknown, missing or of a wrong type, with its path; or the hook takes none.
    """
    return tuple(replace(each.hook, options=_options(each)) for each in asked)


def _options(asked: AskedHook) -> object:
    """Read a hook's options; one that declares some gets their defaults where nothing is written."""
    found = asked.hook.imported()
    declared = getattr(found, "Options", None) if isinstance(found, type) else None
    if declared is None and not asked.options:
        return None
    place, path = asked.place, ("hooks", asked.index, "options")
    written = Written(asked.options, ".".join(map(str, path)), place.asked_by, place.source).at(path, place.lines)
    return typed_options(declared, written, f"the hook {asked.hook.label}", slot="hooks", name=asked.hook.ref)


def modified(spec: ModelSpec, hooks: Sequence[LiveHook]) -> ModelSpec:
    """Let each hook answer another spec, in order.

    Raises:
        HookError: when the answer is no spec, or names other hooks or bundles.
    """
    for hook in hooks:
        answer = hook.call("transom_modify_spec", spec=spec)
        if answer is None:
            continue
        if not isinstance(answer, ModelSpec):
            raise hook.error("transom_modify_spec", f"answered a {type(answer).__name__}, not a ModelSpec")
        for field in ("hooks", "bundle"):
            if getattr(answer, field) != getattr(spec, field):
                raise hook.error("transom_modify_spec", f"changed `{field}`: only a spec or the user names those")
        spec = answer.with_origin(spec.source, spec.lines(), spec.names())
    return spec
