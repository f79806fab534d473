"""How distributions, implementations and chains of them are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transom.errors import SpecError

__all__ = ["AUTO", "CORE", "is_name", "near", "normalise", "parse_chain", "split_reference"]

CORE = "transom"
"""The distribution whose names cannot be shadowed and which no policy denies."""

AUTO = "auto"
"""Stands for the ordered list that core owns for a slot."""

_RUNS = re.compile(r"[-_.]+")
_NAME = re.compile(r"\w[\w.\-]*", re.ASCII)
_REFERENCE = re.compile(rf"(?:(?P<distribution>{_NAME.pattern})/)?(?P<name>{_NAME.pattern})", re.ASCII)


def normalise(distribution: str) -> str:
    """Return the form in which two spellings of one distribution's name are equal.

    Source: PEP 503.

    Example:
        >>> normalise("Acme_Attn") == normalise("acme-attn")
        True
    """
    return _RUNS.sub("-", distribution).lower()


def is_name(text: str) -> bool:
    """Tell whether an implementation may be called this: letters, digits, ``_ . -``, and not `AUTO`."""
    return text != AUTO and _NAME.fullmatch(text) is not None


def split_reference(reference: str) -> tuple[str | None, str]:
    """Split ``distribution/name`` or ``name`` into the distribution, if any, and the name.

    Example:
        >>> split_reference("acme-attn/flash"), split_reference("flash")
        (('acme-attn', 'flash'), (None, 'flash'))
    """
    distribution, _, name = reference.rpartition("/")
    return distribution or None, name


def parse_chain(asked: str | Sequence[str], *, asked_by: str | None = None) -> tuple[str, ...]:
    """Split what a user wrote into the names to try, in order.

    Args:
        asked: ``"a | b | c"``, or a list of names.
        asked_by: who asked, for the error.

    Returns:
        the names, bare or qualified, each once.

    Raises:
        SpecError: when a name is empty, malformed or repeated, or nothing was asked for.

    Example:
        >>> parse_chain("flash_attention | acme-attn/sparse | auto")
        ('flash_attention', 'acme-attn/sparse', 'auto')
    """
    if not isinstance(asked, str | Sequence):
        raise _chain_error("no name", asked, asked_by)
    pieces = asked.split("|") if isinstance(asked, str) else list(asked)
    names: list[str] = []
    for piece in pieces:
        name = piece.strip() if isinstance(piece, str) else piece
        if not isinstance(name, str) or not _REFERENCE.fullmatch(name):
            raise _chain_error(f"{name!r} is not an implementation's name", asked, asked_by)
        if name in names:
            raise _chain_error(f"{name!r} stands twice", asked, asked_by)
        names.append(name)
    if not names:
        raise _chain_error("no name", asked, asked_by)
    return tuple(names)


def _chain_error(what: str, asked: object, asked_by: str | None) -> SpecError:
    return SpecError(
        f"{what} in {asked!r}.",
        asked_by=asked_by,
        hint="write a name, distribution/name, or several of them: first | second",
        path=asked_by,
        file=None,
        line=None,
    )


def near(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three known names that a user who wrote ``name`` may have meant, the likeliest first.

    Example:
        >>> near("flash_atention", ["dot_product", "flash_attention"])
        ('flash_attention',)
    """
    from difflib import get_close_matches  # only a mistake pays for it

    by_folded = {each.casefold(): each for each in sorted(set(known))}
    return tuple(by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6))
