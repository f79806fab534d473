"""Rotary position embeddings as ``config.json`` describes them, in the older form and the newer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["OLD_NAMES", "read_rope", "write_rope"]

OLD_NAMES: Mapping[str, str] = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
"""What base and share are called beside ``rope_scaling`` in the older form."""

_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    ),
}
_BASE = 10000.0
_NEEDS_LENGTH = ("llama3", "yarn")


def read_rope(
    settings: Settings, *, old_names: Mapping[str, str] = OLD_NAMES, share: float = 1.0, is_partial: bool = False
) -> dict[str, Any]:
    """Read base, share of the head and scaling.

    Args:
        settings: where everything that cannot be is noted.
        old_names: what base and share are called in the older form.
        share: of the head that is rotated, where nothing is said.
        is_partial: the family can rotate a part of a head.

    Returns:
        fields of a spec's config.
    """
    # The older form has the scaling in a mapping and the base beside it; the newer has all of it in one mapping.
    given = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        settings.problems.append(f"rope_scaling is {given!r}, not a mapping")
        return {}
    beside = {name: settings.get(old) for name, old in old_names.items()}
    found: dict[str, Any] = {
        "position_embedding_type": "rope",
        "rotary_base": given.get("rope_theta") or beside["rope_theta"] or _BASE,
        "rotary_percent": given.get("partial_rotary_factor") or beside["partial_rotary_factor"] or share,
    }
    if not is_partial and found["rotary_percent"] != 1:
        settings.problems.append(f"partial_rotary_factor is {found['rotary_percent']}: the family rotates whole heads")
    scaling = _read_scaling(settings, given)
    return found if scaling is None else found | {"rope_scaling": scaling}


def _read_scaling(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _NUMBERS:
        settings.problems.append(f"rope_type is {kind!r}; there are {', '.join(_NUMBERS)}")
        return None
    if kind == "yarn" and given.get("truncate") is False:
        settings.problems.append("truncate is False: yarn's range of frequencies is rounded to whole pairs")
    if kind == "default":
        return None
    numbers = {name: given[name] for name in _NUMBERS[kind] if given.get(name) is not None}
    if not (numbers.get("mscale") and numbers.get("mscale_all_dim")):  # one without the other has no effect there
        numbers = {name: value for name, value in numbers.items() if not name.startswith("mscale")}
    if kind in _NEEDS_LENGTH:
        numbers.setdefault("original_max_position_embeddings", settings.get("max_position_embeddings"))
    if "factor" not in numbers:
        settings.problems.append(f"rope_type is {kind!r}, and factor is missing")
        return None
    return {"type": kind} | numbers


def write_rope(
    config: TransformerConfig, *, old_names: Mapping[str, str] = OLD_NAMES, share: float = 1.0
) -> dict[str, Any]:
    """Write base, share (where it is another than usual) and scaling in the older form, which all versions read."""
    beside = {"rope_theta": config.rotary_base}
    if config.rotary_percent != share:
        beside["partial_rotary_factor"] = config.rotary_percent
    settings: dict[str, Any] = {old_names[name]: value for name, value in beside.items()}
    scaling = config.rope_scaling
    if scaling is None:
        return settings | {"rope_scaling": None}
    numbers = {name: getattr(scaling, name) for name in _NUMBERS.get(scaling.type, ())}
    given = {name: number for name, number in numbers.items() if number is not None}
    return settings | {"rope_scaling": {"rope_type": scaling.type, "type": scaling.type} | given}
