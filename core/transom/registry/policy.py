"""Which distributions may run: allow, deny and strict, from the environment.

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

__all__ = ["ALLOW", "DENY", "STRICT", "Policy", "parse_boolean"]

ALLOW = "TRANSOM_PLUGINS_ALLOW"
DENY = "TRANSOM_PLUGINS_DENY"
STRICT = "TRANSOM_STRICT"

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Policy:
    """Which distributions may be chosen, and how hard to be on those that fail.

    Core itself is always allowed.

    Args:
        allow: globs over distribution names; empty = every distribution.
        deny: globs over distribution names; denying wins over allowing.
        strict: an implementation that fails to import raises, even where a chain names another after it.

    Example:
        >>> policy = Policy(allow=("acme-*",), deny=("acme-evil",))
        >>> policy.refusal("acme_attn"), policy.refusal("acme-evil")
        (None, "TRANSOM_PLUGINS_DENY has 'acme-evil'")
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    strict: bool = False

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
                return f"{DENY} has {glob!r}"
        if self.allow and not any(fnmatchcase(name, normalise(glob)) for glob in self.allow):
            return f"{ALLOW} does not have it"
        return None

    def idle(self, distributions: Iterable[str]) -> tuple[str, ...]:
        """Return one line for every pattern that changes nothing: it matches none of the distributions.

        Args:
            distributions: names of all that register something.
        """
        names = {normalise(name) for name in distributions} | {CORE}
        plugins = names - {CORE}
        pairs = [(ALLOW, glob, names) for glob in self.allow] + [(DENY, glob, plugins) for glob in self.deny]
        return tuple(
            f"{variable} has {glob!r}, which {_why_idle(variable, glob)}"
            for variable, glob, candidates in pairs
            if not any(fnmatchcase(name, normalise(glob)) for name in candidates)
        )


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


def _why_idle(variable: str, glob: str) -> str:
    if variable == DENY and fnmatchcase(CORE, normalise(glob)):
        return "has no effect: core cannot be denied"
    return "matches no installed plugin"
