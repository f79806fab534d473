"""Rotary position embedding (Su et al. 2021, RoFormer), with its published scalings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from transom.transformer.direct_attributes import buffer

if TYPE_CHECKING:
    from transom.slots.rotary import RotaryBuilder, RotaryRequest, StepRotary
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.rope_scaling import RopeScaling
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["RotaryEmbedding", "rotary_frequencies"]

_INITIAL_LENGTH = 2048


@final
class RotaryEmbedding(nn.Module):
    """Rotates pairs of components of queries and keys by angles that grow with their positions.

    A pair (x, y) at position p becomes (x cos pθ - y sin pθ, y cos pθ + x sin pθ), so that a query's product with a key
    depends on the distance of their positions. Cosines and sines for positions 0, 1 ... are kept in a table, in float32
    (float64 in a float64 model), whatever the dtype of the rest; it grows when longer sequences come. Those of given
    positions are computed, exactly, at any position.

    Args:
        config: base, style and scaling.
        request: ``head_size`` d, of which the first ``rotary_dim`` components are rotated.

    Source: equation 34 of the paper for the product form. xPos (Sun et al. 2022) counts from position 0, not from the
    middle of the sequence: the same scores, whatever the length.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.rotary import RotaryRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
        >>> rotary = RotaryEmbedding(config, request=RotaryRequest(context=BuildContext(), head_size=4, rotary_dim=4))
        >>> query, key = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 2, 4)
        >>> rotated, _ = rotary(query, key)
        >>> torch.equal(rotated[:, 0], query[:, 0])
        True
    """

    table: Tensor = buffer()
    angular_frequencies: Tensor = buffer()
    decay: Tensor | None = buffer()

    def __init__(self, config: TransformerConfig, *, request: RotaryRequest) -> None:
        super().__init__()
        self.head_size = request.head_size
        self.rotary_dim = request.rotary_dim
        self.is_partial = request.rotary_dim < request.head_size
        self.interleaved = config.rotary_interleaved
        self.turn: Callable[[Tensor, Tensor, Tensor], Tensor] = _turn_pairs if self.interleaved else _turn_halves
        self.scaling, stretch = config.rope_scaling, config.seq_len_interpolation_factor or 1.0
        # Names the turns in a step's mask: embeddings of one name turn alike.
        style = "pairs" if self.interleaved else "halves"
        self.kind = f"turns of {self.rotary_dim} in {style}, {config.rotary_base}, {self.scaling}, {stretch}"
        self.amplitude = _amplitude(config.rope_scaling)
        self.frequencies = rotary_frequencies(
            request.rotary_dim,
            config.rotary_base,
            config.rope_scaling,
            interpolation_factor=stretch,
        )
        self._make_tables(_INITIAL_LENGTH, torch.float64 if config.params_dtype == "float64" else torch.float32)

    def forward(
        self, query: Tensor, key: Tensor, positions: Tensor | None = None, /, *, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys.

        Args:
            query: ``[b, s, n, d]``, or its heads by group, ``[b, s, g, n / g, d]``.
            key: ``[b, s, g, d]``, or ``[b, s, g, 1, d]``.
            positions: integers ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            mask: of the step, which keeps the cosines and sines for the other layers; `None` = they are made here.

        Returns:
            query and key, rotated, in their dtypes; new tensors, which lie in memory as they are shaped.
        """
        wanted = (query.shape[1], query.dim() - 3, query.device)
        if mask is None:
            turns = self._turns(wanted, positions)
        else:
            turns = mask.shared(self.kind, wanted, positions, self._turns)
        # Two turns (cosines, sines) serve both; xPos has two for queries and two for keys.
        cos, sin, key_cos, key_sin = turns if len(turns) == 4 else turns + turns
        is_plain = query.dtype == key.dtype == cos.dtype and not self.is_partial
        rotate = self.turn if is_plain else self._turn_within
        return rotate(query, cos, sin), rotate(key, key_cos, key_sin)

    def _turn_within(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn the components that are rotated, in the tables' dtype where that is wider."""
        wide = x.to(torch.promote_types(x.dtype, cos.dtype))
        turned = self.turn(wide[..., : self.rotary_dim], cos, sin).to(x.dtype)
        return torch.cat([turned, x[..., self.rotary_dim :]], dim=-1) if self.is_partial else turned

    def _turns(self, wanted: tuple[int, int, torch.device], positions: Tensor | None) -> tuple[Tensor, ...]:
        """Give cosines and signed sines for so many tokens, whose heads lie in so many dimensions."""
        length, dims, _ = wanted
        if positions is None and length > self.table.shape[1]:
            if torch.compiler.is_compiling():
                positions = torch.arange(length, device=self.table.device)
            else:
                self._make_tables(2 * length, self.table.dtype, self.table.device)
        turns = self.table.narrow(1, 0, length).unbind(0) if positions is None else self._turns_at(positions)
        return turns if dims == 1 else tuple(turn.unsqueeze(-1 - self.angular_frequencies.dim()) for turn in turns)

    def _turns_at(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Compute cosines and signed sines at ``[s]`` or ``[b, s]``: each ``[(b,) s, 1, *components]``."""
        where = positions.reshape(*positions.shape, 1, *(1 for _ in self.angular_frequencies.shape))
        angles = where * self.angular_frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.amplitude != 1.0:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        if self.decay is None:
            return cos, sin
        decay = (where * self.decay).exp()
        return cos * decay, sin * decay, cos / decay, sin / decay

    def _make_tables(self, length: int, dtype: torch.dtype, device: torch.device | None = None) -> None:
        # A table made while generating must serve training too, where inference tensors are refused.
        with torch.inference_mode(False), torch.no_grad():
            # The sine of a negative angle is the negative sine: the sign of a pair's first half needs no operation.
            signed = [(-f, f) for f in self.frequencies]
            self._hold("angular_frequencies", self._spread(signed, dtype, device))
            decay = _xpos_log_decay(self.rotary_dim, self.scaling)
            self._hold("decay", None if decay is None else self._spread([(x, x) for x in decay], dtype, device))
            positions = torch.arange(length, device=self.angular_frequencies.device)
            self._hold("table", torch.stack(self._turns_at(positions)))

    def _hold(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    def _spread(self, pairs: list[tuple[float, float]], dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """Lay one number for each component of each pair out as the style views a head: ``[D / 2, 2]`` or ``[D]``."""
        numbers = torch.tensor(pairs, dtype=dtype, device=device)
        return numbers if self.interleaved else numbers.T.flatten()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moved to another device, the tables are made anew: a cast would have rounded them, and to_empty blanked them.
        before = self.table
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.table is not before:
            dtype = torch.float64 if self.table.dtype is torch.float64 else torch.float32
            self._make_tables(self.table.shape[1], dtype, self.table.device)
        return self


def rotary_frequencies(
    rotary_dim: int, base: float, scaling: RopeScaling | None = None, *, interpolation_factor: float = 1.0
) -> list[float]:
    """Compute the angle per position of each pair of components, in radians.

    Args:
        rotary_dim: D, an even number of components.
        base: of the geometric series base^(-2i/D).
        scaling: how they are stretched; `None` = not.
        interpolation_factor: positions are divided by it.

    Returns:
        D/2 frequencies, the highest first.

    Source: Su et al. 2021; linear: Chen et al. 2023; YaRN: Peng et al. 2023, section 3.2; Llama 3.1: the model's
    published reference code; LongRoPE: Ding et al. 2024, equation 1.

    Example:
        >>> rotary_frequencies(4, 10000.0)
        [1.0, 0.01]
    """
    plain = [base ** (-2 * i / rotary_dim) / interpolation_factor for i in range(rotary_dim // 2)]
    if scaling is None or scaling.type == "xpos":
        return plain
    if scaling.type == "linear":
        return [f / scaling.factor for f in plain]
    if scaling.type == "longrope":
        return [f / divisor for f, divisor in zip(plain, scaling.frequency_divisors or (), strict=True)]
    kept = _kept_by_llama3(plain, scaling) if scaling.type == "llama3" else _kept_by_yarn(rotary_dim, base, scaling)
    return [f * share + f / scaling.factor * (1 - share) for f, share in zip(plain, kept, strict=True)]


def _kept_by_llama3(frequencies: list[float], scaling: RopeScaling) -> list[float]:
    """Share of each frequency that is kept: by how often it turns over the original context."""
    assert scaling.original_max_position_embeddings is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = (scaling.original_max_position_embeddings * f / (2 * math.pi) for f in frequencies)
    return [_clamp((turn - low) / (high - low)) for turn in turns]


def _kept_by_yarn(rotary_dim: int, base: float, scaling: RopeScaling) -> list[float]:
    """Share of each frequency that is kept: by its place between the two that turn ``beta`` times."""
    assert scaling.original_max_position_embeddings is not None
    original = scaling.original_max_position_embeddings

    def pair_that_turns(times: float) -> float:
        return rotary_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), rotary_dim - 1)
    width = high - low or 0.001
    return [1 - _clamp((i - low) / width) for i in range(rotary_dim // 2)]


def _amplitude(scaling: RopeScaling | None) -> float:
    """The factor of cosines and sines, which tempers the softmax."""
    if scaling is not None and scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling is None or scaling.type != "yarn":
        return 1.0

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale is None:
        return grown(1.0)
    return grown(scaling.mscale) / grown(scaling.mscale_all_dim or 0.0)


def _xpos_log_decay(rotary_dim: int, scaling: RopeScaling | None) -> list[float] | None:
    """Logarithm of the factor by which a query grows per position, and a key falls, for each pair."""
    if scaling is None or scaling.type != "xpos":
        return None
    bases = ((2 * i + 0.4 * rotary_dim) / (1.4 * rotary_dim) for i in range(rotary_dim // 2))
    return [math.log(x) / scaling.scale_base for x in bases]


def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)


# Both compute ``(y, x) * (-sin, sin) + (x, y) * (cos, cos)`` into the memory of (y, x), which is new: on large inputs
# allocating a result for every term costs more than all the arithmetic.


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn component i with i + D/2: ``[..., D]``, with tables ``[..., D]``."""
    return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn component 2i with 2i + 1: ``[..., D]``, with tables ``[..., D / 2, 2]``."""
    pairs = x.view(*x.shape[:-1], -1, 2)
    return torch.stack([pairs[..., 1], pairs[..., 0]], dim=-1).mul_(sin).addcmul_(pairs, cos).flatten(-2)


if TYPE_CHECKING:
    _builder: RotaryBuilder = RotaryEmbedding

    def _is_a_rotary(module: RotaryEmbedding) -> StepRotary:
        return module
