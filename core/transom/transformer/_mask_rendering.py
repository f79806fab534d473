"""What an `AttentionMask` means, said once: for dense tensors and for one element of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from transom.transformer._mask_packing import ranks_in_segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from transom.transformer.attention_mask import AttentionMask, ScoreMod, Window

__all__ = [
    "DenseView",
    "ElementView",
    "OpenedMask",
    "render_additive",
    "render_bias",
    "render_block_mask",
    "render_bool",
    "render_opened",
    "render_positions",
    "render_rows",
    "render_score_mod",
    "visible",
]

_HIDDEN = float("-inf")


class OpenedMask(NamedTuple):
    """A mask for kernels that know no row without a key.

    Args:
        added: to the scores, ``[b or 1, n or 1, s, t]``: biases, and -inf where a key is hidden; 0 in blind rows.
        blind: bool ``[b or 1, n or 1, s, 1]``, True = the query sees nothing, and its output must be made zeros; `None`
            = every query is known to see something.
    """

    added: Tensor
    blind: Tensor | None


@final
class DenseView:
    """Shows a mask's fields as tensors that broadcast over ``[b, n, s, t]``."""

    def query(self, field: Tensor) -> Tensor:
        """``[b, s]`` as ``[b, 1, s, 1]``."""
        return field[:, None, :, None]

    def key(self, field: Tensor) -> Tensor:
        """``[b, t]`` as ``[b, 1, 1, t]``."""
        return field[:, None, None, :]

    def row(self, field: Tensor) -> Tensor:
        """``[b]`` as ``[b, 1, 1, 1]``."""
        return field[:, None, None, None]

    def pair(self, field: Tensor) -> Tensor:
        """``[b, n, s, t]`` as it is."""
        return field


@final
class ElementView:
    """Shows a mask's fields at one row, head, query and key, each a 0-d integer tensor, as ``flex_attention`` asks."""

    def __init__(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> None:
        self.b, self.h, self.i, self.j = b, h, i, j

    def query(self, field: Tensor) -> Tensor:
        """One element of ``[b or 1, s]``."""
        return field[_index(self.b, field, 0), self.i]

    def key(self, field: Tensor) -> Tensor:
        """One element of ``[b or 1, t]``."""
        return field[_index(self.b, field, 0), self.j]

    def row(self, field: Tensor) -> Tensor:
        """One element of ``[b or 1]``."""
        return field[_index(self.b, field, 0)]

    def pair(self, field: Tensor) -> Tensor:
        """One element of ``[b or 1, n or 1, s, t]``."""
        return field[_index(self.b, field, 0), _index(self.h, field, 1), self.i, self.j]


def _index(index: Tensor, field: Tensor, dim: int) -> Tensor:
    return index if field.shape[dim] > 1 else torch.zeros_like(index)


def visible(
    mask: AttentionMask,
    view: DenseView | ElementView,
    positions: tuple[Tensor, Tensor] | None,
    window: Window | None = None,
) -> Tensor | None:
    """Combine all that the mask says about who may attend to whom.

    Args:
        mask: whose fields are combined.
        view: shows each field, whole or at one element.
        positions: of queries ``[b or 1, s]`` and keys ``[b or 1, t]``, where causality or a window needs them.
        window: the layer's own.

    Returns:
        bool, as the view shows it; `None` when nothing is hidden.
    """
    terms: list[Tensor] = []
    if positions is not None:
        terms += _terms_of_distance(mask, view, view.query(positions[0]), view.key(positions[1]), window)
    if mask.query_segments is not None:
        segment = view.query(mask.query_segments)
        terms += [segment == view.key(_key_segments(mask)), segment >= 0]
    if mask.query_positions is not None:
        terms.append(view.query(_rows(mask.query_positions)) >= 0)
    if mask.key_positions is not None:
        terms.append(view.key(_rows(mask.key_positions)) >= 0)
    if mask.key_padding is not None:
        terms.append(view.key(mask.key_padding))
    if mask.keep is not None:
        terms.append(view.pair(mask.keep))
    return _all(terms)


def _terms_of_distance(
    mask: AttentionMask, view: DenseView | ElementView, query: Tensor, key: Tensor, window: Window | None
) -> list[Tensor]:
    terms: list[Tensor] = []
    if mask.causal:
        past = key <= query
        terms.append(past if mask.prefix_lengths is None else past | (key < view.row(mask.prefix_lengths)))
    for left, right in (w for w in (mask.window, window) if w is not None):
        if left is not None:
            terms.append(key >= query - left)
        if right is not None:
            terms.append(key <= query + right)
    return terms


def render_positions(mask: AttentionMask, s: int, t: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Find the positions of s queries ``[b or 1, s]`` and t keys ``[b or 1, t]``."""
    query, key = mask.query_positions, mask.key_positions
    if query is None and key is None and mask.query_segments is not None:
        return ranks_in_segments(mask.query_segments, _key_segments(mask))
    if query is None:
        query = torch.arange(t - s, t, device=device)
    if key is None:
        key = torch.arange(t, device=device)
    return _rows(query), _rows(key)


def _needed_positions(
    mask: AttentionMask, s: int, t: int, window: Window | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    return mask.positions(s, t, device=device) if mask.causal or mask.window or window else None


def render_bool(mask: AttentionMask, s: int, t: int, window: Window | None, device: torch.device) -> Tensor | None:
    """Make what `AttentionMask.as_bool` gives."""
    seen = visible(mask, DenseView(), _needed_positions(mask, s, t, window, device), window)
    return None if seen is None else seen.expand(*seen.shape[:2], s, t)


def render_bias(mask: AttentionMask, s: int, t: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Make what `AttentionMask.as_bias` gives."""
    bias = None if mask.bias is None else mask.bias.to(dtype)
    if mask.alibi_slopes is None:
        return bias
    alibi = _alibi(mask.alibi_slopes, mask.positions(s, t, device=device), dtype)
    return alibi if bias is None else bias + alibi


def _alibi(slopes: Tensor, positions: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Make ALiBi's bias ``[b or 1, n, s, t]`` from slopes ``[n]``."""
    query, key = positions
    distance = (query[:, None, :, None] - key[:, None, None, :]).abs()
    # A distance beyond 256 has no exact bfloat16: multiply first, round once.
    exact = slopes.to(torch.promote_types(dtype, torch.float32))
    return (-exact[:, None, None] * distance).to(dtype)


def render_additive(
    mask: AttentionMask, s: int, t: int, window: Window | None, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Make what `AttentionMask.as_additive` gives."""
    bias = mask.as_bias(s, t, dtype=dtype, device=device)
    seen = mask.as_bool(s, t, device=device, window=window)
    if seen is None:
        return bias
    if bias is None:
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, _HIDDEN)
    return torch.where(seen, bias, _HIDDEN)


def render_rows(mask: AttentionMask, s: int, t: int, window: Window | None, device: torch.device) -> Tensor | None:
    """Make what `AttentionMask.seeing_rows` gives."""
    seen = mask.as_bool(s, t, device=device, window=window)
    return None if seen is None else seen.any(dim=-1, keepdim=True)


def render_opened(
    mask: AttentionMask, s: int, t: int, window: Window | None, dtype: torch.dtype, device: torch.device
) -> OpenedMask | None:
    """Make what `AttentionMask.as_opened` gives.

    A learned bias is new in every layer, for its gradient; all that does not depend on it is not, so that one operation
    is left for a layer.
    """
    seen, seeing = mask._once(("shown", window, dtype, device), s, t, _shown)
    if seen is None or seeing is None:
        added = mask.as_additive(s, t, dtype=dtype, device=device, window=window)
        return None if added is None else OpenedMask(added, None)
    bias = mask.as_bias(s, t, dtype=dtype, device=device)
    zero = torch.zeros((), dtype=dtype, device=device)
    closed = torch.where(seeing, _HIDDEN, zero)  # [b, n, s, 1]
    return OpenedMask(torch.where(seen, zero if bias is None else bias, closed), ~seeing)


def _shown(
    mask: AttentionMask, s: int, t: int, window: Window | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Find which keys are seen, ``[b, n, s, t]``, and which queries see any, ``[b, n, s, 1]``; biases may hide too."""
    seen = mask.as_bool(s, t, device=device, window=window)
    bias = mask.as_bias(s, t, dtype=dtype, device=device)
    if mask.bias is None or bias is None:
        return seen, mask.seeing_rows(s, t, device=device, window=window)
    finite = ~bias.detach().isneginf()
    seen = finite if seen is None else finite & seen
    seeing = seen.any(dim=-1, keepdim=True)
    return seen, None if _is_known_all(seeing) else seeing


def _is_known_all(flags: Tensor) -> bool:
    """Whether all are True, where that is read for nothing: not from a device, and not of what has no value yet."""
    has_values = flags.is_cpu and type(flags) is Tensor and not torch.compiler.is_compiling()
    return has_values and not torch._C._are_functorch_transforms_active() and bool(flags.all())


def render_block_mask(
    mask: AttentionMask, s: int, t: int, window: Window | None, device: torch.device
) -> BlockMask | None:
    """Make what `AttentionMask.as_block_mask` gives."""
    from torch.nn.attention.flex_attention import create_block_mask

    if window is None and mask.features <= {"bias", "bias_grad", "alibi"}:
        return None
    positions = _needed_positions(mask, s, t, window, device)

    def element(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = visible(mask, ElementView(b, h, i, j), positions, window)
        return torch.ones_like(b, dtype=torch.bool) if seen is None else seen

    by_row = (mask.query_segments, mask.key_segments, mask.prefix_lengths, mask.key_padding, mask.keep)
    by_position = (p for p in (mask.query_positions, mask.key_positions) if p is not None)
    sizes = [*(x.shape[0] for x in by_row if x is not None), *(_rows(p).shape[0] for p in by_position)]
    heads = 1 if mask.keep is None else mask.keep.shape[1]
    return create_block_mask(element, max(sizes, default=1), heads, s, t, device=device)


def render_score_mod(mask: AttentionMask, s: int, t: int, device: torch.device) -> ScoreMod:
    """Make what `AttentionMask.as_score_mod` gives."""
    bias, slopes = mask.bias, mask.alibi_slopes
    positions = None if slopes is None else mask.positions(s, t, device=device)

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = ElementView(b, h, i, j)
        total = score if bias is None else score + at.pair(bias)
        if slopes is not None and positions is not None:
            total = total - slopes[h] * (at.query(positions[0]) - at.key(positions[1])).abs()
        return total.to(score.dtype)

    return add


def _key_segments(mask: AttentionMask) -> Tensor:
    segments = mask.query_segments if mask.key_segments is None else mask.key_segments
    assert segments is not None
    return segments


def _rows(positions: Tensor) -> Tensor:
    return positions if positions.dim() == 2 else positions[None]


def _all(terms: list[Tensor]) -> Tensor | None:
    combined: Tensor | None = None
    for term in terms:
        combined = term if combined is None else combined & term
    return combined
