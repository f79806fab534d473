"""How rotary position embeddings are stretched beyond the context they were trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from transom.transformer._config_errors import refuse, unknown_field
from transom.transformer.enums import RopeScalingType

__all__ = ["RopeScaling"]

_INSIDE = "config.rope_scaling"
_BELONGS: Mapping[str, tuple[str, ...]] = {
    "factor": ("linear", "llama3", "yarn"),
    "original_max_position_embeddings": ("llama3", "yarn"),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn", "longrope"),
    "frequency_divisors": ("longrope",),
    "mscale": ("yarn",),
    "mscale_all_dim": ("yarn",),
    "scale_base": ("xpos",),
}
_MAY_BE_NONE = ("attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How RoPE's frequencies are scaled.

    Args:
        type: ``"linear"`` divides all of them by `factor` (Chen et al. 2023); ``"llama3"`` only the low ones, with a
            smooth transition (Llama 3.1); ``"yarn"`` likewise by the number of rotations (Peng et al. 2023);
            ``"longrope"`` divides each by a number of its own (Ding et al. 2024); ``"xpos"`` keeps them and lets
            queries and keys decay (Sun et al. 2022).
        factor: how much longer the context becomes; at least 1.
        original_max_position_embeddings: the context the model was trained on, in tokens (llama3, yarn).
        low_freq_factor: llama3: wavelengths above original / this are scaled.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        beta_fast: yarn: dimensions that rotate more often than this are kept.
        beta_slow: yarn: dimensions that rotate less often than this are scaled.
        attention_factor: multiplies cosines and sines. `None` = for yarn 0.1 ln(factor) + 1, for longrope 1.
        frequency_divisors: longrope: one for each pair of components that is rotated.
        mscale: yarn: 0.1 mscale ln(factor) + 1 instead, over the same with `mscale_all_dim`.
        mscale_all_dim: see `mscale`.
        scale_base: xpos: tokens over which the decay is to the power of one.

    Raises:
        ConfigError: a number is missing or cannot be, or belongs to another type.

    Example:
        >>> RopeScaling(type="linear", factor=2).to_dict()
        {'type': 'linear', 'factor': 2}
    """

    type: RopeScalingType
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    frequency_divisors: tuple[float, ...] | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    scale_base: float = 512.0

    def __post_init__(self) -> None:
        if self.type not in get_args(RopeScalingType):
            self._refuse("type", "it is not one of those there are", available=get_args(RopeScalingType))
        if isinstance(self.frequency_divisors, list):
            object.__setattr__(self, "frequency_divisors", tuple(self.frequency_divisors))
        for field in dataclasses.fields(self)[1:]:
            if getattr(self, field.name) != field.default and self.type not in _BELONGS[field.name]:
                fitting = [name for name, types in _BELONGS.items() if self.type in types]
                self._refuse(field.name, f"type {self.type} has no such number", available=fitting)
        for name in _BELONGS:
            self._check_number(name)
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            self._refuse("low_freq_factor", f"a number below high_freq_factor ({self.high_freq_factor}) is needed")
        if self.type == "yarn" and self.beta_slow >= self.beta_fast:
            self._refuse("beta_slow", f"a number below beta_fast ({self.beta_fast}) is needed")
        if self.mscale_all_dim is not None and self.mscale is None:
            self._refuse("mscale_all_dim", "it needs mscale")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RopeScaling:
        """Make one of plain data.

        Raises:
            ConfigError: as for the class, or a key is unknown or missing.
        """
        known = tuple(f.name for f in dataclasses.fields(cls))
        unknown = [str(name) for name in mapping if name not in known]
        if unknown:
            raise unknown_field(unknown[0], known, inside=_INSIDE)
        if "type" not in mapping:
            refuse("type", None, "it must be given", available=get_args(RopeScalingType), inside=_INSIDE)
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields that are not at their defaults as plain data."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        given = {name: value for name, (value, default) in values.items() if value != default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if name == "original_max_position_embeddings":
            is_tokens = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if self.type in _BELONGS[name] and not is_tokens:
                self._refuse(name, f"type {self.type} needs the trained context, a whole number of tokens")
            return
        if name == "frequency_divisors":
            self._check_divisors()
            return
        if value is None and name in _MAY_BE_NONE:
            return
        if not _is_positive(value):
            self._refuse(name, "a finite number above 0 is needed")
        if name == "factor" and value < 1:
            self._refuse(name, "a number of at least 1 is needed")

    def _check_divisors(self) -> None:
        if self.type != "longrope":
            return
        divisors = self.frequency_divisors
        if not isinstance(divisors, tuple) or not all(map(_is_positive, divisors)):
            self._refuse("frequency_divisors", "a list of numbers above 0, one a pair, is needed")

    def _refuse(self, name: str, right: str, *, available: Any = ()) -> None:
        refuse(name, getattr(self, name), right, available=available, inside=_INSIDE)


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0
