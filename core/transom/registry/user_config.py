"""The user's config file: what one person or machine prefers, for every spec.

It is TOML, at the place where the platform keeps such files, or where ``TRANSOM_CONFIG`` says::

    hooks = ["acme-lora/lora"]

    [auto]
    core_attention = ["flash_attention", "torch_dot_product", "dot_product"]

    [policy]
    deny = ["acme-evil"]
    strict = true

Environment variables win over it. It is read once, when it is first needed.
"""

from __future__ import annotations

import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from transom.errors import SpecError, UserConfigError
from transom.registry.hook_use import HookUse
from transom.registry.names import AUTO, near, parse_chain
from transom.slots import SLOT_ALIASES

__all__ = ["CONFIG", "PolicySettings", "UserConfig", "config_file", "user_config"]

CONFIG = "TRANSOM_CONFIG"
FILE_NAME = "config.toml"

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which distributions may be chosen; see `transom.registry.policy.Policy`.

    Args:
        allow: globs over distribution names; empty = every distribution.
        deny: globs over distribution names.
        strict: an implementation that fails to import raises, even in a chain.
    """

    allow: tuple[NonEmpty, ...] = ()
    deny: tuple[NonEmpty, ...] = ()
    strict: bool = False


class UserConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the file says; every field may be left out.

    Args:
        auto: by slot, the names that ``auto`` stands for, in order.
        policy: which distributions may be chosen.
        hooks: hooks that run for every spec, before the spec's own; a name each, or a name and options.

    Example:
        >>> UserConfig(auto={"linear": ("te_linear", "torch_linear")}).order("row_linear")
        ('te_linear', 'torch_linear')
    """

    auto: dict[str, str | tuple[str, ...]] = {}
    policy: PolicySettings = PolicySettings()
    hooks: tuple[str | HookUse, ...] = ()

    def order(self, slot: str) -> tuple[str, ...]:
        """Return the names that ``auto`` stands for in a slot; empty where the file does not say."""
        key = self.auto_key(slot)
        return () if key is None else parse_chain(self.auto[key])

    def auto_key(self, slot: str) -> str | None:
        """Return under which key of `auto` a slot's order stands: its own, or one that stands for several slots."""
        names = [slot, *(alias for alias, slots in SLOT_ALIASES.items() if slot in slots)]
        return next((name for name in names if name in self.auto), None)


def config_file() -> Path:
    """Return where the file is, or would be: ``TRANSOM_CONFIG``, or the platform's place for such files."""
    told = os.environ.get(CONFIG)
    if told:
        return Path(told)
    from platformdirs import user_config_dir  # only who does not say pays for it

    return Path(user_config_dir("transom", appauthor=False)) / FILE_NAME


def user_config() -> UserConfig:
    """Return what the user's config file says; an absent one says nothing.

    Raises:
        UserConfigError: when ``TRANSOM_CONFIG`` names a file that is not there, or the file cannot be read, is not
            TOML, or has a wrong or unknown field.
    """
    return _read(config_file(), bool(os.environ.get(CONFIG)))


@lru_cache(maxsize=16)
def _read(path: Path, must_exist: bool) -> UserConfig:
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        if not must_exist:
            return UserConfig()
        hint = f"make it, or unset {CONFIG}"
        raise _error(
            path, "", f"is not there: {path}", hint=hint, asked_by=f"the environment variable {CONFIG}"
        ) from error
    except OSError as error:
        raise _error(path, "", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _error(path, "", f"is not UTF-8: {error}") from error
    except RecursionError as error:
        raise _error(path, "", "is nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and what Python says to a number of 5,000 digits
        raise _error(path, "", f"is not TOML: {error}") from error
    config = _converted(data, path)
    _check_names(config, path)
    return config


def _converted(data: dict[str, Any], path: Path) -> UserConfig:
    try:
        return msgspec.convert(data, UserConfig)
    except msgspec.ValidationError as error:
        complaint, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").lstrip(".")
        raise _error(path, place, f"is wrong: {complaint}", hint=_field_hint(complaint, place)) from error


def _field_hint(complaint: str, place: str) -> str | None:
    """Return which field an unknown one may have meant."""
    if "unknown field" not in complaint:
        return None
    known = (PolicySettings if place == "policy" else UserConfig).__struct_fields__
    guesses = near(complaint.split("`")[1], known)
    return f"{guesses[0]}?" if guesses else f"the fields are {', '.join(known)}"


def _check_names(config: UserConfig, path: Path) -> None:
    """Refuse names that nothing can have."""
    chains: dict[str, str | tuple[str, ...]] = {f"auto.{slot}": names for slot, names in config.auto.items()}
    if config.hooks:
        chains["hooks"] = tuple(HookUse.of(entry).hook for entry in config.hooks)
    for place, names in chains.items():
        try:
            parsed = parse_chain(names)
        except SpecError as error:
            raise _error(path, place, f"is wrong: {error.what.rstrip('.')}", hint=error.hint) from error
        if AUTO in parsed:
            raise _error(path, place, f"has {AUTO!r}, which it defines", hint="write the names that are meant")


def _error(
    path: Path, place: str, complaint: str, *, hint: str | None = None, asked_by: str | None = None
) -> UserConfigError:
    subject = f"{place} in the user's config" if place else "the user's config"
    return UserConfigError(
        f"{subject} {complaint}.", asked_by=asked_by or str(path), hint=hint, file=str(path), path=place
    )
