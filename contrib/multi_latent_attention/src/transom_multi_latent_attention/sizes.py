"""The sizes of latents and heads: what options say, and what follows from the config where they say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.errors import ConfigError

if TYPE_CHECKING:
    from transom import TransformerConfig

__all__ = ["LatentOptions", "Sizes"]


@dataclass(frozen=True)
class LatentOptions:
    """Sizes of latents and heads; `None` = as said.

    Args:
        kv_lora_rank: of the latent that keys and values are made of; `None` = 2 * kv_channels.
        q_lora_rank: of the latent that queries are made of; `None` = queries are projected directly.
        qk_nope_head_dim: of a head's queries and keys, the part without positions; `None` = kv_channels.
        qk_rope_head_dim: the part that is rotated, one key for all heads; `None` = kv_channels / 2.
        v_head_dim: of a head's values; `None` = kv_channels.
    """

    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; at least 1 is needed")


@dataclass(frozen=True)
class Sizes:
    """All sizes of an attention.

    Args:
        heads: n.
        latent: width of the latent of keys and values.
        query_latent: width of the latent of queries; `None` = there is none.
        plain: of a head's queries and keys, the part without positions.
        rotated: the part with positions.
        value: of a head's values.
        cached: heads and head size of caches: each token has ``heads * size`` numbers for keys and as many for values.

    Raises:
        ConfigError: caches have no room for the latent, or the part with positions is odd.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4)
        >>> sizes = Sizes.of(config, LatentOptions(kv_lora_rank=24))
        >>> sizes.latent, sizes.plain, sizes.rotated, sizes.key
        (24, 16, 8, 24)
    """

    heads: int
    latent: int
    query_latent: int | None
    plain: int
    rotated: int
    value: int
    cached: tuple[int, int]

    @classmethod
    def of(cls, config: TransformerConfig, options: LatentOptions | None) -> Sizes:
        """Read them from config and options."""
        options, d = options or LatentOptions(), config.kv_channels
        return cls(
            heads=config.num_attention_heads,
            latent=options.kv_lora_rank or 2 * d,
            query_latent=options.q_lora_rank,
            plain=options.qk_nope_head_dim or d,
            rotated=options.qk_rope_head_dim or max(d // 2, 1),
            value=options.v_head_dim or d,
            cached=(config.num_query_groups, d),
        )

    def __post_init__(self) -> None:
        if self.rotated % 2:
            raise _wrong(
                "kv_channels", self.cached[1], f"{self.rotated} numbers cannot be turned in pairs",
                "set options: qk_rope_head_dim to an even number",
            )  # fmt: skip
        groups, d = self.cached
        if self.latent + self.rotated > 2 * groups * d:
            needed = -(-(self.latent + self.rotated) // (2 * d))
            raise _wrong(
                "num_query_groups", groups,
                f"its caches have room for {2 * groups * d} numbers a token, and {self.latent + self.rotated} are kept",
                f"num_query_groups: {needed}, or a smaller kv_lora_rank",
            )  # fmt: skip

    @property
    def key(self) -> int:
        """Of a head's queries and keys, both parts."""
        return self.plain + self.rotated


def _wrong(field: str, value: Any, reason: str, hint: str) -> ConfigError:
    return ConfigError(
        f"{field} is {value} and the self-attention is multi_latent_attention: {reason}.",
        hint=hint,
        field=field,
        value=value,
        path=f"config.{field}",
        file=None,
        line=None,
    )
