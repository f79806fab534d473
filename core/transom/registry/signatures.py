"""Whether a callable accepts what a Protocol says callers pass: by reading signatures, never by calling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from inspect import Parameter, Signature
from typing import Any

__all__ = ["builder_mismatches", "mismatches", "module_mismatches"]

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def builder_mismatches(builder: Any, protocol: type, interface: type | tuple[type, ...]) -> tuple[str, ...]:
    """Return what keeps a builder from being called as its slot's callers do; empty = nothing.

    A class's ``forward`` is compared too; what a function returns is only known once it is called.

    Args:
        builder: the class or function that is registered.
        protocol: the slot's builder Protocol.
        interface: the slot's module Protocol, or several of which one is enough.

    Returns:
        one complaint each, to be read after "the builder"; of several Protocols, as to the nearest.
    """
    if not callable(builder):
        return (f"is of type {type(builder).__name__}, which cannot be called",)
    compare = _builder_mismatches if isinstance(builder, Hashable) else _builder_mismatches.__wrapped__
    return min((compare(builder, protocol, each) for each in _several(interface)), key=len)


@lru_cache(maxsize=1024)
def _builder_mismatches(builder: Callable[..., Any], protocol: Any, interface: Any) -> tuple[str, ...]:
    options = ("options",) if isinstance(getattr(builder, "Options", None), type) else ()
    try:
        found = mismatches(inspect.signature(builder), _unbound(protocol, "__call__"), keywords=options)
    except ValueError:  # compiled code without a signature
        return ("has no signature to read",)
    if isinstance(builder, type) and all(callable(getattr(owner, "forward", None)) for owner in (builder, interface)):
        complaints = mismatches(_unbound(builder, "forward"), _unbound(interface, "forward"))
        found += tuple(f"makes a module whose forward {complaint}" for complaint in complaints)
    return found


def module_mismatches(module: Any, interface: type | tuple[type, ...]) -> tuple[str, ...]:
    """Return what keeps a module from being used as its slot's callers do; empty = nothing.

    Args:
        module: an object that was made.
        interface: the slot's module Protocol, or several of which one is enough.

    Returns:
        one complaint each, to be read after "it"; of several Protocols, as to the nearest.
    """
    return min((_module_mismatches(module, each) for each in _several(interface)), key=len)


def _module_mismatches(module: Any, interface: type) -> tuple[str, ...]:
    complaints: list[str] = []
    for name in (name for name, value in vars(interface).items() if callable(value) and not name.startswith("_")):
        method = getattr(module, name, None)
        if not callable(method):
            complaints.append(f"has no method `{name}`")
            continue
        found = mismatches(inspect.signature(method), _unbound(interface, name))
        complaints += [f"has a {name} that {complaint}" for complaint in found]
    return tuple(complaints)


def _several(interface: type | tuple[type, ...]) -> tuple[type, ...]:
    return interface if isinstance(interface, tuple) else (interface,)


def mismatches(candidate: Signature, contract: Signature, *, keywords: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return what keeps ``candidate`` from being called in every way that ``contract`` allows; empty = nothing.

    Args:
        candidate: what is offered.
        contract: what callers pass; a parameter with a default may be left out.
        keywords: further names that will be passed by keyword.

    Returns:
        one complaint a parameter.

    Example:
        >>> def contract(size, /, *, bias): ...
        >>> def candidate(size, *, biases): ...
        >>> mismatches(inspect.signature(candidate), inspect.signature(contract))
        ('does not accept `bias`', 'requires `biases`, which callers do not pass')
    """
    matched: set[str] = set()
    complaints: list[str] = []
    for position, parameter in enumerate(contract.parameters.values()):
        match, complaint = _match(candidate, position, parameter)
        if match is not None:
            if match.name in matched:
                complaint = f"takes `{match.name}` for two arguments"
            matched.add(match.name)
            if complaint is None and match.default is Parameter.empty is not parameter.default:
                complaint = f"requires `{parameter.name}`, which callers may leave out"
        if complaint is not None:
            complaints.append(complaint)
    for name in keywords:
        matched.add(name)
        if not _takes(candidate, name):
            complaints.append(f"does not accept `{name}`")
    complaints += [
        f"requires `{name}`, which callers do not pass" for name in _required(candidate) if name not in matched
    ]
    return tuple(complaints)


def _match(candidate: Signature, position: int, parameter: Parameter) -> tuple[Parameter | None, str | None]:
    """Return the parameter of ``candidate`` that receives one of the contract's, and what is wrong with it."""
    positional = [p for p in candidate.parameters.values() if p.kind in _BY_POSITION]
    swallows = any(p.kind is Parameter.VAR_POSITIONAL for p in candidate.parameters.values())
    name = parameter.name
    if parameter.kind is Parameter.POSITIONAL_ONLY:
        match = positional[position] if position < len(positional) else None
        missing = match is None and not swallows
        return match, f"takes no argument number {position + 1} (`{name}`)" if missing else None
    match = candidate.parameters.get(name)
    if match is not None and match.kind not in _BY_NAME:
        return match, f"does not accept `{name}` by keyword"
    if not _takes(candidate, name):
        return None, f"does not accept `{name}`"
    if parameter.kind is Parameter.KEYWORD_ONLY:
        return match, None
    if match in positional and positional.index(match) != position:
        return (
            match,
            f"has `{name}` as argument {positional.index(match) + 1}, where callers pass number {position + 1}",
        )
    if match is None and swallows and position < len(positional):
        return (
            None,
            f"takes argument number {position + 1} as `{positional[position].name}`, where callers pass `{name}`",
        )
    by_position = match in positional or (match is None and swallows)
    return match, None if by_position else f"does not accept `{name}` by position"


def _takes(candidate: Signature, name: str) -> bool:
    """Tell whether ``name`` may be passed by keyword."""
    match = candidate.parameters.get(name)
    if match is not None and match.kind in _BY_NAME:
        return True
    return any(p.kind is Parameter.VAR_KEYWORD for p in candidate.parameters.values())


def _required(candidate: Signature) -> Iterator[str]:
    for parameter in candidate.parameters.values():
        if parameter.default is Parameter.empty and parameter.kind in (*_BY_NAME, Parameter.POSITIONAL_ONLY):
            yield parameter.name


def _unbound(owner: type, method: str) -> Signature:
    """Return a method's signature without ``self``."""
    signature = inspect.signature(getattr(owner, method))
    if isinstance(inspect.getattr_static(owner, method), staticmethod | classmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])
