"""Which hooks run for a spec, and what they make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transom.errors import HookError
from transom.registry.hooks import Hook, LiveHook, enabled_hooks
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.user_config import config_file, user_config
from transom.specs.bundle import load_bundles
from transom.specs.spec import ModelSpec

__all__ = ["hooks_of", "modified"]


def hooks_of(spec: ModelSpec, registry: Registry, *, is_locked: bool = False) -> tuple[Hook, ...]:
    """Find the hooks that run for a spec: those of the user's config, of its bundles, and its own, in this order.

    Args:
        spec: what the user wrote.
        registry: what is installed, or, under a lock, what the lock names.
        is_locked: look elsewhere too for a hook that the registry does not know; the comparison with the lock will
            tell that it was not locked.

    Raises:
        HookError, AmbiguousNameError, PolicyError, SpecError: as `transom.registry.hooks.enabled_hooks`.
    """
    if not (spec.hooks or spec.bundle or user_config().hooks):
        return ()
    asked = list(_asked(spec, registry))
    try:
        return enabled_hooks(asked, registry, Policy.current())
    except HookError:
        if not is_locked:
            raise
        return enabled_hooks(asked, default_registry(), Policy.current())


def _asked(spec: ModelSpec, registry: Registry) -> Iterator[tuple[Sequence[str], str]]:
    yield user_config().hooks, f"hooks in {config_file()}"
    for bundle in load_bundles(spec.bundle, registry, Policy.current(), asked_by=f"bundle in {spec.source}"):
        yield bundle.data.hooks, f"hooks in {bundle.label}"
    yield spec.hooks, f"hooks in {spec.source}"


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
        spec = answer.with_origin(spec.source, spec.lines())
    return spec
