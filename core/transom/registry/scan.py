"""The only reader of package metadata: one guarded pass over what is installed.

Every ``transom.*`` entry-point group is read in one pass. Only ``entry_points.txt`` is opened, and the metadata proper
of only those distributions that mention Transom in it. Nothing a distribution contains can make the pass fail: what is
wrong becomes a `Problem`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import importlib_metadata

from transom.registry.names import is_name, normalise

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = ["Entry", "Index", "Problem", "index_of", "installed_version", "requirements_of", "scan"]

PREFIX = "transom."
_MARK = PREFIX.encode()
_SUFFIXES = (".dist-info", ".egg-info")
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_VALUE = re.compile(rf"{_DOTTED}\s*:\s*{_DOTTED}\s*(\[.*\])?")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with an installed distribution; it never stops anything else from working.

    Args:
        kind: ``"metadata"``, ``"entry point"``, ``"shadowed"``, ``"name"``, ``"slot"``, ``"card"`` or ``"import"``.
        distribution: the distribution it is about, as far as known.
        where: the file, or the group and name, that is wrong.
        what: one sentence.
        traceback: of an import that failed.
        hint: what to do about it.
    """

    kind: str
    distribution: str
    where: str
    what: str
    traceback: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution}: {self.what} ({self.where})"


@dataclass(frozen=True)
class Entry:
    """One entry point of a ``transom.*`` group.

    Args:
        group: ``"transom.norm"`` ...
        name: the name in the group.
        value: ``"module:attribute"``.
        distribution: the distribution's name as its metadata spells it.
        version: the distribution's version.
        location: the directory that holds the distribution's metadata.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str
    location: str

    @property
    def slot(self) -> str:
        """The group without its prefix."""
        return self.group.removeprefix(PREFIX)


@dataclass(frozen=True)
class Index:
    """What one pass found.

    Args:
        entries: sorted by group, name and distribution.
        problems: what is wrong with what was looked at.
        is_complete: whether everything on the path was looked at, and not only distributions asked for by name.
    """

    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()
    is_complete: bool = True

    def group(self, name: str) -> tuple[Entry, ...]:
        """Return the entries of one group, ``"transom.hooks"`` for example."""
        return tuple(entry for entry in self.entries if entry.group == name)

    @property
    def distributions(self) -> tuple[str, ...]:
        """The names of the distributions that register something, sorted."""
        return tuple(sorted({entry.distribution for entry in self.entries}))


def scan(path: Sequence[str] | None = None) -> Index:
    """Read the ``transom.*`` entry points of every installed distribution.

    Where several copies of a distribution are found, the first on the path wins, as it does for Python's own imports;
    the others are recorded. Nothing is imported.

    Args:
        path: directories to look in; `None` = ``sys.path``.

    Returns:
        what was found.

    Example:
        >>> [entry.name for entry in scan().group("transom.norm") if entry.distribution == "transom"]
        ['torch_norm']
    """
    problems: list[Problem] = []
    return _index(_discover(problems, {} if path is None else {"path": list(path)}), problems)


def index_of(distributions: Iterable[str], path: Sequence[str] | None = None) -> Index:
    """Read the entry points of the named distributions alone, without looking at any other.

    Args:
        distributions: names, in any spelling.
        path: directories to look in; `None` = ``sys.path``.

    Returns:
        what was found; a name that is not installed is a problem.
    """
    problems: list[Problem] = []
    scope = {} if path is None else {"path": list(path)}
    found: list[Any] = []
    for name in distributions:
        copies = list(_discover(problems, {"name": name, **scope}))
        if not copies:
            problems.append(Problem("metadata", name, name, "is not installed"))
        found += copies
    return replace(_index(found, problems), is_complete=False)


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution from its metadata, or `None` where there is none.

    Example:
        >>> installed_version("transom") is not None, installed_version("no-such-distribution")
        (True, None)
    """
    try:
        return _header(importlib_metadata.distribution(distribution))[1] or None
    except Exception:  # missing, or unreadable: either way there is no version to compare
        return None


def requirements_of(distribution: str) -> tuple[str, ...]:
    """Return what an installed distribution requires, as its metadata says it; empty where that cannot be read."""
    try:
        return tuple(importlib_metadata.requires(distribution) or ())
    except Exception:  # what cannot be read requires nothing that could be checked
        return ()


def _discover(problems: list[Problem], scope: dict[str, Any]) -> Iterator[Any]:
    """Yield distributions; a finder that fails costs its own, not the others'."""
    try:
        yield from importlib_metadata.distributions(**scope)
    except Exception as error:
        problems.append(Problem("metadata", "?", "sys.meta_path", f"a finder of distributions failed: {_brief(error)}"))
        context = importlib_metadata.DistributionFinder.Context(**scope)  # type: ignore[no-untyped-call]
        yield from importlib_metadata.MetadataPathFinder.find_distributions(context)


@dataclass(slots=True)
class _Copy:
    """One copy of a distribution's metadata, before it is known whether it counts."""

    distribution: Any
    location: str
    entry_points: bytes

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def is_whole(self) -> bool:
        """Whether it has metadata: an interrupted (un)install leaves a directory without, or one called ~..."""
        if not isinstance(_path(self.distribution), Path) or self.path.is_file():
            return True
        has_metadata = (self.path / "METADATA").is_file() or (self.path / "PKG-INFO").is_file()
        return has_metadata and not self.path.name.startswith("~")

    @property
    def rank(self) -> tuple[bool, bool, Version | None]:
        """What decides between copies in one directory, whose order there means nothing: dist-info, then the newest."""
        version = _version_in(self.path)
        return self.path.suffix == ".dist-info", version is not None, version


def _index(distributions: Iterable[Any], problems: list[Problem]) -> Index:
    copies: defaultdict[str, list[_Copy]] = defaultdict(list)
    relevant: dict[str, None] = {}
    for distribution in distributions:
        try:
            key, copy = _look(distribution)
        except Exception as error:
            problems.append(Problem("metadata", "?", str(_path(distribution)), f"cannot be read: {_brief(error)}"))
            continue
        copies[key].append(copy)
        if _MARK in copy.entry_points:
            relevant[key] = None
    entries: list[Entry] = []
    for key in relevant:
        winner = _choose(key, copies[key], problems)
        if winner is not None:
            entries += _entries(key, winner, problems)
    entries.sort(key=lambda entry: (entry.group, entry.name, normalise(entry.distribution)))
    return Index(tuple(entries), tuple(problems))


def _path(distribution: Any) -> Any:
    """Return where a distribution's metadata lies, `None` for a finder that keeps it elsewhere than in files."""
    return getattr(distribution, "_path", None)


def _look(distribution: Any) -> tuple[str, _Copy]:
    """Read the entry points of one distribution, and its name off its directory where it has one."""
    path = _path(distribution)
    if not isinstance(path, Path):
        text = distribution.read_text("entry_points.txt") or ""
        return normalise(_header(distribution)[0]), _Copy(distribution, str(path or distribution), text.encode())
    stem, dot, kind = path.name.rpartition(".")
    name = stem.partition("-")[0] if dot + kind in _SUFFIXES else _header(distribution)[0]
    key, location = normalise(name), str(path)
    try:
        with open(f"{location}/entry_points.txt", "rb") as file:  # noqa: PTH123 - twice as fast, once a distribution
            return key, _Copy(distribution, location, file.read())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return key, _Copy(distribution, location, b"")


def _choose(key: str, copies: list[_Copy], problems: list[Problem]) -> _Copy | None:
    """Return the copy that counts: of the first directory on the path, dist-info before egg-info, then the newest."""
    distinct: dict[str, _Copy] = {}
    for copy in copies:
        distinct.setdefault(str(copy.path.resolve()), copy)
    whole = [copy for copy in distinct.values() if copy.is_whole]
    problems += [
        Problem("metadata", key, copy.location, "is stale: what is left of an interrupted install or uninstall")
        for copy in distinct.values()
        if copy not in whole
    ]
    if not whole:
        return None
    first = [copy for copy in whole if copy.path.parent == whole[0].path.parent]
    winner = first[0] if len(first) == 1 else max(first, key=lambda copy: copy.rank)
    problems += [
        Problem("shadowed", key, copy.location, f"is hidden by another copy, {winner.location}")
        for copy in whole
        if copy is not winner
    ]
    return winner


def _entries(key: str, copy: _Copy, problems: list[Problem]) -> Iterator[Entry]:
    """Yield the well-formed entries of the ``transom.*`` groups; note the others."""
    name, version = _identity(key, copy, problems)
    where = f"{copy.location}/entry_points.txt"
    try:
        text = copy.entry_points.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problems.append(Problem("entry point", name, where, f"is not UTF-8: {error}"))
        return
    seen: set[tuple[str, str]] = set()
    for number, group, line in _lines(text):
        entry, _, value = (part.strip() for part in line.partition("="))
        complaint = _complaint(group, entry, value, (group, entry) in seen)
        if complaint:
            problems.append(Problem("entry point", name, f"{where}, line {number}", f"{complaint}: [{group}] {line}"))
            continue
        seen.add((group, entry))
        yield Entry(group, entry, value, name, version, copy.location)


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, group and text of every line that stands in a ``transom.*`` group."""
    group = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;" and group.startswith(PREFIX):
            yield number, group, line


def _complaint(group: str, name: str, value: str, is_repeated: bool) -> str | None:
    if not value:
        return "is not of the form name = module:attribute"
    if not is_name(group.removeprefix(PREFIX)):
        return "is in a group that no slot can have"
    if not is_name(name):
        return "has a name that cannot be asked for"
    if not _VALUE.fullmatch(value):
        return "does not refer to an object as module:attribute"
    return "repeats a name of its group" if is_repeated else None


def _identity(key: str, copy: _Copy, problems: list[Problem]) -> tuple[str, str]:
    """Return name and version as the metadata spell them, or as the directory does where they cannot be read."""
    try:
        name, version = _header(copy.distribution)
        if name and version and normalise(name) == key:
            return name, version
        complaint = f"says name {name!r} and version {version!r}"
    except Exception as error:
        complaint = f"cannot be read: {_brief(error)}"
    problems.append(Problem("metadata", key, copy.location, f"{complaint}; the directory's name is taken instead"))
    return key, str(_version_in(copy.path) or "unknown")


def _header(distribution: Any) -> tuple[str, str]:
    """Return name and version from a distribution's metadata, empty where they are missing.

    Both are plain lines of the header; parsing the whole as an e-mail message would cost more than all other work here.
    """
    text = next(filter(None, map(distribution.read_text, ("METADATA", "PKG-INFO", ""))), "")
    fields = {"name": "", "version": ""}
    for line in text.partition("\n\n")[0].splitlines():
        field, _, value = line.partition(":")
        if fields.get(field.lower()) == "":
            fields[field.lower()] = value.strip()
    return fields["name"], fields["version"]


def _version_in(path: Path) -> Version | None:
    """Return the version in a metadata directory's name."""
    from packaging.version import InvalidVersion, Version  # few scans need it

    parts = path.stem.split("-")
    try:
        return Version(parts[1])
    except (IndexError, InvalidVersion):
        return None


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
