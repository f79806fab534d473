"""Which distributions may run: allow, deny and strict, from the environment and the user's config.

This is no sandbox: it says by name what may be chosen. The protection is that a plugin that nothing names is never
executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from transom.errors import PolicyError
from transom.registry.names import CORE, normalise
from transom.registry.user_config import CONFIG, config_file, user_config

__all__ = ["ALLOW", "DENY", "STRICT", "VARIABLES", "Policy", "parse_boolean"]

ALLOW = "TRANSOM_PLUGINS_ALLOW"
DENY = "TRANSOM_PLUGINS_DENY"
STRICT = "TRANSOM_STRICT"

VARIABLES = (ALLOW, CONFIG, DENY, STRICT)
"""Every environment variable that Transom reads."""

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Policy:
    """Which distributions may be chosen, and how hard to be on those that fail.

    Core itself is always allowed.

    Args:
        allow: globs over distribution names; empty = every distribution.
        deny: globs over distribution names; denying wins over allowing.
        strict: an implementation that fails to import raises, even where a chain names another after it.
        allow_from: where `allow` was read from, for messages.
        deny_from: where `deny` was read from, for messages.

    Example:
        >>> policy = Policy(allow=("acme-*",), deny=("acme-evil",))
        >>> policy.refusal("acme_attn"), policy.refusal("acme-evil")
        (None, "TRANSOM_PLUGINS_DENY has 'acme-evil'")
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    strict: bool = False
    allow_from: str = ALLOW
    deny_from: str = DENY

    @classmethod
    def current(cls) -> Policy:
        """Read the environment, and for what it does not say the user's config.

        Raises:
            PolicyError: when a variable is nonsense.
            UserConfigError: when the file is.
        """
        told, settings = cls.from_environment(), user_config().policy
        file = config_file() if settings.allow or settings.deny else None
        return cls(
            allow=told.allow or settings.allow,
            deny=told.deny or settings.deny,
            strict=told.strict if os.environ.get(STRICT) else settings.strict,
            allow_from=f"policy.allow in {file}" if settings.allow and not told.allow else ALLOW,
            deny_from=f"policy.deny in {file}" if settings.deny and not told.deny else DENY,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Policy:
        """Read TRANSOM_PLUGINS_ALLOW, TRANSOM_PLUGINS_DENY and TRANSOM_STRICT; an empty one counts as unset.

        Args:
            environment: in place of `os.environ`.

        Raises:
            PolicyError: when a value is nonsense.
        """
        values = os.environ if environment is None else environment
        return cls(
            allow=_globs(ALLOW, values.get(ALLOW, "")),
            deny=_globs(DENY, values.get(DENY, "")),
            strict=parse_boolean(STRICT, values.get(STRICT) or "0"),
        )

    def refusal(self, distribution: str) -> str | None:
        """Return why the distribution may not be chosen, `None` if it may."""
        name = normalise(distribution)
        if name == CORE:
            return None
        for glob in self.deny:
            if fnmatchcase(name, normalise(glob)):
                return f"{self.deny_from} has {glob!r}"
        if self.allow and not any(fnmatchcase(name, normalise(glob)) for glob in self.allow):
            return f"{self.allow_from} does not have it"
        return None

    def idle(self, distributions: Iterable[str]) -> tuple[str, ...]:
        """Return one line for every pattern that changes nothing: it matches none of the distributions.

        Args:
            distributions: names of all that register something.
        """
        names = {normalise(name) for name in distributions} | {CORE}
        plugins = names - {CORE}
        idle = [(self.allow_from, glob, "matches no installed plugin") for glob in self.allow if not _hits(glob, names)]
        idle += [(self.deny_from, glob, _why_idle(glob)) for glob in self.deny if not _hits(glob, plugins)]
        return tuple(f"{source} has {glob!r}, which {why}" for source, glob, why in idle)


def parse_boolean(variable: str, text: str) -> bool:
    """Read a switch: 1, true, yes, on or 0, false, no, off, in any case.

    Args:
        variable: whose value it is, for the error.
        text: the value.

    Raises:
        PolicyError: when it is anything else.

    Example:
        >>> parse_boolean("TRANSOM_STRICT", "no")
        False
    """
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise PolicyError(
            f"{variable} is {text!r}, which is neither true nor false.",
            asked_by=f"the environment variable {variable}",
            available=_BOOLEANS,
            variable=variable,
            value=text,
        )
    return value


def _globs(variable: str, text: str) -> tuple[str, ...]:
    globs = tuple(glob for glob in (piece.strip() for piece in text.split(",")) if glob)
    if text.strip() and not globs:
        raise PolicyError(
            f"{variable} is {text!r}, which has no pattern in it.",
            asked_by=f"the environment variable {variable}",
            hint=f"unset it, or write distribution names: {variable}={CORE} is core alone, acme-* all of acme's",
            variable=variable,
            value=text,
        )
    return globs


def _hits(glob: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, normalise(glob)) for name in names)


def _why_idle(glob: str) -> str:
    """Say why denying by a pattern changes nothing."""
    if fnmatchcase(CORE, normalise(glob)):
        return "has no effect: core cannot be denied"
    return "matches no installed plugin"
