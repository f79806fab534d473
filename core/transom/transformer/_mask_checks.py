"""What an `AttentionMask` refuses: dtypes, ranks and sizes that cannot be what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transom.errors import MaskError
from transom.transformer._mask_contents import has_no_tensors

if TYPE_CHECKING:
    from transom.transformer.attention_mask import AttentionMask, Window

__all__ = ["check_fields", "check_lengths", "check_windows"]


def _is_bool(x: Tensor) -> bool:
    return x.dtype is torch.bool


def _is_floating(x: Tensor) -> bool:
    return x.is_floating_point()


def _is_integral(x: Tensor) -> bool:
    return not (x.dtype is torch.bool or x.is_floating_point() or x.is_complex())


# field -> kind of dtype, its test, ranks that it may have, how those are written
_FIELDS: dict[str, tuple[str, Callable[[Tensor], bool], tuple[int, ...], str]] = {
    "query_segments": ("integer", _is_integral, (2,), "[b, s]"),
    "key_segments": ("integer", _is_integral, (2,), "[b, t]"),
    "prefix_lengths": ("integer", _is_integral, (1,), "[b]"),
    "key_padding": ("bool", _is_bool, (2,), "[b, t]"),
    "query_positions": ("integer", _is_integral, (1, 2), "[s] or [b, s]"),
    "key_positions": ("integer", _is_integral, (1, 2), "[t] or [b, t]"),
    "keep": ("bool", _is_bool, (4,), "[b or 1, n or 1, s, t]"),
    "bias": ("floating", _is_floating, (4,), "[b or 1, n or 1, s, t]"),
    "alibi_slopes": ("floating", _is_floating, (1,), "[n]"),
}

_DTYPE_HINTS = {
    "keep": "True = may attend; what is added to the scores goes into bias=",
    "key_padding": "True = may be attended: for 1 = keep, pass key_padding=padding.bool()",
    "bias": "what says who may attend goes into keep=",
}

_OF_BATCH = tuple(name for name, (*_, shape) in _FIELDS.items() if "[b" in shape)
_OF_QUERIES = {"query_segments": -1, "query_positions": -1, "keep": -2, "bias": -2}
_OF_KEYS = {"key_segments": -1, "key_padding": -1, "key_positions": -1, "keep": -1, "bias": -1}


def check_fields(mask: AttentionMask) -> None:
    """Refuse a mask whose fields have a wrong dtype or rank, or sizes that do not fit together."""
    check_windows(mask.window)
    if has_no_tensors(mask) and mask.key_segments is None:
        return
    given = 0
    for name, (kind, fits, ranks, shape) in _FIELDS.items():
        value = getattr(mask, name)
        if value is not None:
            given += 1
            _check_field(name, value, kind, fits(value) if isinstance(value, Tensor) else False, ranks, shape)
    if mask.key_segments is not None and mask.query_segments is None:
        raise MaskError(
            "key_segments are given without query_segments.",
            asked_by="AttentionMask",
            hint="give query_segments too; key_segments alone say nothing",
            field="key_segments",
        )
    if mask.prefix_lengths is not None and not mask.causal:
        raise MaskError(
            "prefix_lengths are given without causal: there is nothing that a prefix would be exempt from.",
            asked_by="AttentionMask",
            hint="causal=True, or no prefix_lengths",
            field="prefix_lengths",
        )
    if given > 1:
        _check_agreement(mask, "rows", dict.fromkeys(_OF_BATCH, 0))
        _check_agreement(mask, "heads", {"keep": 1, "bias": 1, "alibi_slopes": 0})


def _check_field(name: str, value: Tensor, kind: str, fits: bool, ranks: tuple[int, ...], shape: str) -> None:
    if not fits:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise MaskError(
            f"{name} must be a tensor of {kind} dtype, not {got}.",
            asked_by=f"AttentionMask.{name}",
            hint=_DTYPE_HINTS.get(name),
            field=name,
        )
    if value.dim() not in ranks:
        raise MaskError(
            f"{name} must have shape {shape}, not {list(value.shape)}.",
            asked_by=f"AttentionMask.{name}",
            field=name,
        )


def _check_agreement(mask: AttentionMask, what: str, dims: dict[str, int]) -> None:
    """Refuse fields that tell different numbers of rows or heads; 1 goes with every number."""
    sizes = {name: _size(name, getattr(mask, name), dim) for name, dim in dims.items()}
    told = {name: size for name, size in sizes.items() if size != 1}
    if len(set(told.values())) > 1:
        raise MaskError(
            f"the mask's fields tell different numbers of {what}: "
            + ", ".join(f"{name} {size}" for name, size in told.items())
            + ".",
            asked_by="AttentionMask",
        )


def _size(name: str, value: Tensor | None, dim: int) -> int:
    if value is None or (value.dim() == 1 and name in ("query_positions", "key_positions")):
        return 1
    return value.shape[dim]


def check_windows(window: Window | None) -> None:
    """Refuse a window that is not a pair of token distances."""
    if window is None:
        return
    well_formed = isinstance(window, tuple) and len(window) == 2
    if not well_formed or any(side is not None and (not _is_int(side) or side < 0) for side in window):
        raise MaskError(
            f"a window is (left, right), each None or a number of tokens from 0 on, not {window!r}.",
            asked_by="window",
            hint="a window of W tokens that ends at the query is (W - 1, 0); None = unbounded",
        )


def _is_int(side: object) -> bool:
    return isinstance(side, int | torch.SymInt) and not isinstance(side, bool)


def check_lengths(mask: AttentionMask, s: int, t: int) -> None:
    """Refuse to render a mask for other numbers of queries and keys than its fields tell."""
    for what, wanted, dims in (("queries", s, _OF_QUERIES), ("keys", t, _OF_KEYS)):
        for name, dim in dims.items():
            value = getattr(mask, name)
            if value is not None and value.shape[dim] != wanted:
                raise MaskError(
                    f"{name} is for {value.shape[dim]} {what}, but there are {wanted}.",
                    asked_by=f"AttentionMask.{name}",
                    field=name,
                )
    if mask.query_segments is not None and mask.key_segments is None and s != t:
        raise MaskError(
            f"query_segments without key_segments are for equal numbers of queries and keys, not {s} and {t}.",
            asked_by="AttentionMask.query_segments",
            hint="give key_segments [b, t]",
            field="key_segments",
        )
