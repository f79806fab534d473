"""Who may attend to whom: one object a step, which renders itself in the form that a backend asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from transom.errors import MaskError
from transom.transformer import _mask_caching, _mask_rendering
from transom.transformer._mask_checks import check_fields, check_lengths, check_windows
from transom.transformer._mask_contents import has_no_tensors, needs_gradient
from transom.transformer._mask_packing import VarlenLayout, runs_of_segments, segments_of_cumulative_lengths
from transom.transformer._mask_rendering import OpenedMask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["AttentionMask", "OpenedMask", "ScoreMod", "VarlenLayout", "Window"]

Window = tuple[int | None, int | None]
"""Token distances ``(left, right)``: query i sees keys i - left ... i + right; `None` = unbounded on that side."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Changes one score, given the indices of its row, head, query and key; all are 0-d, as ``flex_attention`` has it."""

_T = TypeVar("_T")
_W = TypeVar("_W")
_HIDING_BY_DATA = frozenset({"packed", "padding", "positions", "keep"})
_WINDOWED = ("bool", "additive", "rows", "shown", "opened", "block")


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionMask:
    """Which keys each query may attend to, and what is added to their scores.

    All fields are optional and combine: a key is visible when *every* field that is given allows it. What is rendered
    is kept in the object, so that all layers of a step share it: make one a step. No method but `as_varlen` reads the
    values of a tensor on a device, and all the others can be traced by ``torch.compile(fullgraph=True)``.

    `causal`, `window`, `prefix_lengths` and `alibi_slopes` count in positions. Where none are given, queries and keys
    are aligned bottom-right: the last of s queries is at the position of the last of t keys, within its segment if
    there are segments. So packed segments give what each of them gives alone.

    Args:
        causal: a query sees no key at a later position.
        window: ``(left, right)``: a query at position p sees keys at positions p - left ... p + right.
        query_segments: integers ``[b, s]``: a query sees the keys of its own segment; negative = padding, sees nothing.
        key_segments: integers ``[b, t]``; `None` = the same as ``query_segments``.
        prefix_lengths: integers ``[b]``: keys at positions below it are exempt from `causal` (but not from `window`).
        key_padding: bool ``[b, t]``, True = may be attended.
        query_positions: integers ``[s]`` or ``[b, s]``; negative = padding, sees nothing.
        key_positions: integers ``[t]`` or ``[b, t]``; negative = an empty slot, seen by none. `None` beside
            ``query_positions`` = 0 ... t-1.
        keep: bool ``[b or 1, n or 1, s, t]``, True = may attend.
        bias: floating ``[b or 1, n or 1, s, t]``, added to the scores; it may require a gradient.
        alibi_slopes: floating ``[n]``: head i adds ``-alibi_slopes[i] * |query position - key position|`` (Press et al.
            2022, made symmetric so that it serves without `causal` too).

    Raises:
        MaskError: a field has another dtype or shape than said above, or two of them do not fit together.

    Example:
        >>> mask = AttentionMask(causal=True, key_padding=torch.tensor([[True, True, False]]))
        >>> mask.as_bool(3, 3, device=torch.device("cpu"))[0, 0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 0]], dtype=torch.int32)
    """

    causal: bool = False
    window: Window | None = None
    query_segments: Tensor | None = None
    key_segments: Tensor | None = None
    prefix_lengths: Tensor | None = None
    key_padding: Tensor | None = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    keep: Tensor | None = None
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_cumulative_lengths(
        cls,
        cumulative: Tensor,
        length: int,
        *,
        key_cumulative: Tensor | None = None,
        key_length: int | None = None,
        max_length: int | None = None,
        key_max_length: int | None = None,
        causal: bool = False,
        window: Window | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> AttentionMask:
        """Make the mask of one row (b = 1) that holds several sequences one after another.

        Args:
            cumulative: integers ``[m + 1]``, from 0: sequence i is at the tokens from ``cumulative[i]`` up to, but not
                with, ``cumulative[i + 1]``; tokens beyond the last sequence are padding.
            length: s, tokens in the row.
            key_cumulative: the same for keys; `None` = they are the queries' own.
            key_length: t, tokens in the keys' row, where ``key_cumulative`` is given.
            max_length: of the longest sequence, where known; `None` = ``length``, which always holds.
            key_max_length: the same for keys.
            causal: as in `AttentionMask`, within each sequence.
            window: as in `AttentionMask`.
            alibi_slopes: as in `AttentionMask`.

        Returns:
            the mask; its `as_varlen` reads nothing on the host.

        Raises:
            MaskError: cumulative lengths are not integers ``[m + 1]``, or keys' and queries' do not fit together.

        Example:
            >>> AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 5]), 6).query_segments
            tensor([[ 0,  0,  1,  1,  1, -1]])
        """
        if (key_cumulative is None) != (key_length is None):
            raise MaskError(
                "key_cumulative and key_length come together.",
                asked_by="AttentionMask.from_cumulative_lengths",
                hint="give both when keys are packed otherwise than queries, or neither",
            )
        queries = segments_of_cumulative_lengths(cumulative, length, "cumulative")
        keys, layout_keys, t = queries, cumulative, length
        if key_cumulative is not None and key_length is not None:
            keys, layout_keys, t = (
                segments_of_cumulative_lengths(key_cumulative, key_length, "key_cumulative"),
                key_cumulative,
                key_length,
            )
        if cumulative.shape != layout_keys.shape:
            raise MaskError(
                f"cumulative tells {len(cumulative) - 1} sequences and key_cumulative {len(layout_keys) - 1}.",
                asked_by="AttentionMask.from_cumulative_lengths",
                hint="sequence i of the queries reads sequence i of the keys: an empty one has equal neighbours",
            )
        mask = cls(causal=causal, window=window, query_segments=queries, key_segments=keys, alibi_slopes=alibi_slopes)
        longest_key = key_max_length or (t if key_cumulative is not None else max_length or length)
        mask._memo["varlen"] = VarlenLayout(
            cumulative.int(), layout_keys.int(), max_length or length, longest_key, queries >= 0
        )
        return mask

    @property
    def features(self) -> frozenset[str]:
        """What a core attention must have declared to be given this mask (keys of ``MASK_FEATURES``, and "window")."""
        found = {
            "causal": self.causal,
            "window": self.window is not None,
            "packed": self.query_segments is not None,
            "prefix": self.prefix_lengths is not None,
            "padding": self.key_padding is not None,
            "positions": self.query_positions is not None or self.key_positions is not None,
            "keep": self.keep is not None,
            "bias": self.bias is not None,
            "bias_grad": self.bias is not None and self.bias.requires_grad,
            "alibi": self.alibi_slopes is not None,
        }
        return frozenset(name for name, present in found.items() if present)

    def is_plain_causal(self, window: Window | None = None) -> bool:
        """Whether this is nothing but causality, aligned bottom-right.

        Args:
            window: the layer's own window, if it has one.
        """
        if (window is not None and window[0] is not None) or (self.window is not None and self.window[0] is not None):
            return False
        return self.causal and has_no_tensors(self)

    def as_bool(self, s: int, t: int, *, device: torch.device, window: Window | None = None) -> Tensor | None:
        """Render who may attend to whom.

        Args:
            s: number of queries.
            t: number of keys.
            device: of the result; the mask's own tensors must be there.
            window: the layer's own window, which is combined with the mask's.

        Returns:
            bool ``[b or 1, n or 1, s, t]``, True = may attend; `None` = everyone sees everyone. Do not write to it.

        Raises:
            MaskError: a field is for another number of queries or keys.
        """
        return self._once(("bool", window, device), s, t, _mask_rendering.render_bool)

    def as_bias(self, s: int, t: int, *, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Render what is added to the scores: ``bias`` and ALiBi, without the hidden keys.

        Args:
            s: number of queries.
            t: number of keys.
            dtype: floating, of the result.
            device: of the result.

        Returns:
            ``[b or 1, n or 1, s, t]``, or `None` when nothing is added. Do not write to it.
        """
        if self.bias is None and self.alibi_slopes is None:
            return None
        return self._once(("bias", dtype, device), s, t, _mask_rendering.render_bias)

    def as_additive(
        self, s: int, t: int, *, dtype: torch.dtype, device: torch.device, window: Window | None = None
    ) -> Tensor | None:
        """Render everything as one term of the scores: `as_bias`, and -inf where `as_bool` is False.

        Args:
            s: number of queries.
            t: number of keys.
            dtype: floating, of the result.
            device: of the result.
            window: the layer's own window, which is combined with the mask's.

        Returns:
            ``[b or 1, n or 1, s, t]``, or `None` when there is nothing to add. A row that sees nothing is all -inf,
            and its output must be zeros: see `seeing_rows`. Do not write to it.
        """
        return self._once(("additive", window, dtype, device), s, t, _mask_rendering.render_additive)

    def as_opened(
        self, s: int, t: int, *, dtype: torch.dtype, device: torch.device, window: Window | None = None
    ) -> OpenedMask | None:
        """Render for kernels that know no row without a key: it is shown all keys, and named, to be struck out.

        The softmax of such a row is 0/0, of which not every kernel makes zeros.

        Args:
            s: number of queries.
            t: number of keys.
            dtype: floating, of the term.
            device: of the result.
            window: the layer's own window, which is combined with the mask's.

        Returns:
            the term of the scores and the rows, or `None` when there is nothing to add. Do not write to it.
        """
        return self._once(("opened", window, dtype, device), s, t, _mask_rendering.render_opened)

    def positions(self, s: int, t: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Render where queries and keys stand: those that were given, or aligned bottom-right.

        Args:
            s: number of queries.
            t: number of keys.
            device: of the result.

        Returns:
            positions of queries ``[b or 1, s]`` and of keys ``[b or 1, t]``.
        """
        return self._once(("positions", device), s, t, _mask_rendering.render_positions)

    def seeing_rows(self, s: int, t: int, *, device: torch.device, window: Window | None = None) -> Tensor | None:
        """Render which queries see anything at all: the others' output is zeros.

        Args:
            s: number of queries.
            t: number of keys.
            device: of the result.
            window: the layer's own window, which is combined with the mask's.

        Returns:
            bool ``[b or 1, n or 1, s, 1]``; `None` when every query is known to see something.
        """
        if s <= t and self.features.isdisjoint(_HIDING_BY_DATA):
            return None  # every query sees at least the key at its own position, to which each distance is 0
        return self._once(("rows", window, device), s, t, _mask_rendering.render_rows)

    def as_block_mask(self, s: int, t: int, *, device: torch.device, window: Window | None = None) -> BlockMask | None:
        """Render for ``flex_attention``: the same as `as_bool`, kept block by block.

        Args:
            s: number of queries.
            t: number of keys.
            device: of the result.
            window: the layer's own window, which is combined with the mask's.

        Returns:
            the block mask, or `None` when everyone sees everyone. What `as_score_mod` adds is not in it.
        """
        return self._once(("block", window, device), s, t, _mask_rendering.render_block_mask)

    def as_score_mod(self, s: int, t: int, *, device: torch.device) -> ScoreMod | None:
        """Render for ``flex_attention`` what is added to the scores: the same as `as_bias`, element by element.

        Args:
            s: number of queries.
            t: number of keys.
            device: of the scores.

        Returns:
            a function of a score and its row, head, query and key, or `None` when nothing is added.
        """
        if self.bias is None and self.alibi_slopes is None:
            return None
        return self._once(("score_mod", device), s, t, _mask_rendering.render_score_mod)

    def as_varlen(self) -> VarlenLayout | None:
        """Render as cumulative lengths, for kernels that take packed sequences without padding.

        `causal`, `window` and ALiBi stay with the kernel, aligned bottom-right within each sequence.

        Returns:
            the layout, or `None` when this mask cannot be said so: it has no segments, or segments that do not lie
            together, or one of the fields prefix, padding, positions, keep and bias. Only for a mask that was not made
            by `from_cumulative_lengths` are the segments' ends read on the host, once.
        """
        sayable = {"causal", "window", "packed", "alibi"}
        if self.query_segments is None or not self.features <= sayable:
            return None
        if "varlen" not in self._memo and not torch.compiler.is_compiling():
            same = self.key_segments is None or self.key_segments is self.query_segments
            self._memo["varlen"] = runs_of_segments(self.query_segments) if same else None
        layout: VarlenLayout | None = self._memo.get("varlen")
        return layout

    def for_cache(self, positions: Tensor, lengths: Tensor, t: int, *, aligned: bool = False) -> AttentionMask:
        """Derive the mask over a cache's t slots, slot j holding the key of position j.

        Fields that tell of more keys than t (of a whole cache, where only its used part is read) are cut to t, and
        slots that are not in use are hidden.

        Args:
            positions: of the queries, ``[s]`` or ``[b, s]``.
            lengths: integers ``[b]``, slots in use.
            t: slots that are read.
            aligned: the positions are known to be t-s ... t-1 in every row, so that bottom-right alignment is right.

        Returns:
            the mask for the cache; the same object when called again for the same positions.
        """
        made = self._memo.get("cache")
        if made is not None and made[0] is positions and made[1] == t:
            derived: AttentionMask = made[2]
            return derived
        derived = _mask_caching.mask_of_slots(self, positions, lengths, t, aligned)
        # Layers ask one after another, the first for all of them; a derived mask answers for itself.
        derived._memo["cache"] = (positions, t, derived)
        self._memo["cache"] = (positions, t, derived)
        return derived

    def shared(
        self,
        name: str,
        wanted: _W,
        positions: Tensor | None,
        make: Callable[[_W, Tensor | None], _T],
    ) -> _T:
        """Keep what the layers of a step would all make alike, under a name, of some values and the tokens' positions.

        What is made while compiling is not kept: a graph computes once what is the same, and layers that are compiled
        one by one are one graph only if none finds what another left.
        """
        made = self._memo.get(name)
        if made is not None and made[0] == wanted and made[1] is positions:
            found: _T = made[2]
            return found
        value = make(wanted, positions)
        if not torch.compiler.is_compiling():
            self._memo[name] = (wanted, positions, value)
        return value

    def unrendered(self) -> AttentionMask:
        """Copy the mask without what was rendered; a compiled region that is run twice may write to no other."""
        copy = replace(self)
        if "varlen" in self._memo:
            copy._memo["varlen"] = self._memo["varlen"]
        return copy

    def _once(self, key: tuple[Any, ...], s: int, t: int, render: Callable[..., _T]) -> _T:
        # Sizes are compared, not hashed: as part of a key they would pin a symbolic size to a number under compile.
        made = self._memo.get(key)
        if made is not None and made[0] == s and made[1] == t:
            found: _T = made[2]
            return found
        check_lengths(self, s, t)
        check_windows(key[1] if key[0] in _WINDOWED else None)
        value = render(self, s, t, *key[1:])
        # What needs a gradient is made anew for every layer: one that is recomputed must save what it saved before.
        if not needs_gradient(value):
            self._memo[key] = (s, t, value)
        return value
