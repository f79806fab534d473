"""The block as Zeta publishes it, to be used by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import ConfigError, InputError
from transom.slots.core_attention import CoreAttentionRequest
from transom.transformer.dot_product_attention import DotProductAttention

from transom_zeta_block.parallel_block import BlockShape, FinetuneModule, ParallelBlock

__all__ = ["TransformerBlock"]

FinetuneModules = Sequence[FinetuneModule | None]
_PLACES = ("q", "k", "v", "o")


@final
class TransformerBlock(ParallelBlock):
    """Attention with one key/value head, and a gated feed-forward beside it, of one normed input; no residual.

    State, constructor and call are those that Zeta documents.

    Args:
        dim: width of the input.
        dim_head: size of a head, even.
        causal: a token sees no later one.
        heads: query heads.
        qk_rmsnorm: give queries and keys unit length and learned scales.
        qk_scale: of the scores, with ``qk_rmsnorm``; without, it is 1/sqrt(dim_head).
        ff_mult: inner width of the feed-forward half, as a multiple of ``dim``.
        attn_dropout: probability of dropping an attention weight in training.
        ff_dropout: probability of dropping an inner activation of the feed-forward half in training.
        use_xpos: let queries grow and keys shrink with their positions, when ``causal``; they are rotated anyway.
        xpos_scale_base: tokens over which they do so by the scale's base.
        flash_attn: compute the same by torch's fused kernels.
        finetune_modules: q, k, v and o, or `None` in the place of any. The first three map the normed input
            ``[b, s, dim]`` to what is added to queries ``[b, s, heads * dim_head]``, key and value
            ``[b, s, dim_head]``; o maps the merged heads ``[b, s, heads * dim_head]`` to what is added to attention's
            output ``[b, s, dim]``. Those that are modules become the block's own. A state without them loads, and they
            keep what they hold.

    Raises:
        ConfigError: a size is below one, or ``dim_head`` is odd.
        InputError: there are not four finetune modules.

    Source: Zeta's documentation of ``TransformerBlock``. Its code cannot be given ``finetune_modules`` when it is
    constructed, and does not use ``qk_scale``; here both do what is documented. A token that may attend to nothing gets
    zeros from attention, as everywhere in Transom.

    Example:
        >>> import torch
        >>> lora_q = nn.Linear(32, 32)
        >>> block = TransformerBlock(dim=32, dim_head=8, heads=4, finetune_modules=(lora_q, None, None, None))
        >>> block(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        causal: bool = True,
        heads: int = 8,
        qk_rmsnorm: bool = False,
        qk_scale: float = 8,
        ff_mult: int = 4,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        use_xpos: bool = True,
        xpos_scale_base: int = 512,
        flash_attn: bool = False,
        finetune_modules: FinetuneModules | None = None,
    ) -> None:
        _check_sizes(dim=dim, dim_head=dim_head, heads=heads, ff_mult=ff_mult)
        shape = BlockShape(
            dim=dim,
            dim_head=dim_head,
            heads=heads,
            ff_inner=dim * ff_mult,
            qk_rmsnorm=qk_rmsnorm,
            use_xpos=use_xpos and causal,
            xpos_scale_base=xpos_scale_base,
        )
        make_attention = _FusedAttention if flash_attn else _plain_attention
        super().__init__(
            shape,
            fused_attn_ff_proj=nn.Linear(dim, sum(shape.fused), bias=False),
            attend=make_attention(shape, float(qk_scale) if qk_rmsnorm else dim_head**-0.5, attn_dropout),
            attn_out=nn.Linear(heads * dim_head, dim, bias=False),
            ff_proj=nn.Linear(dim * ff_mult, dim, bias=False),
            ff_dropout=ff_dropout,
        )
        self.causal = causal
        self.finetune = _Finetune(_four(finetune_modules))

    def forward(self, x: Tensor, mask: Tensor | None = None, finetune_modules: FinetuneModules | None = None) -> Tensor:
        """Run the block.

        Args:
            x: ``[b, s, dim]``.
            mask: bool ``[b, s]``, True = a token; False = padding, which no token sees.
            finetune_modules: for this call, in the place of the constructor's.

        Returns:
            ``[b, s, dim]``, what the block adds to a residual stream.

        Raises:
            InputError: there are not four finetune modules.
            MaskError: the mask has another shape or dtype.
        """
        finetune = self.finetune.places if finetune_modules is None else _four(finetune_modules)
        return self.branch(x, mask=AttentionMask(causal=self.causal, key_padding=mask), finetune=finetune)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise _size_error(name, size, "at least 1 is needed")
    if sizes["dim_head"] % 2:
        raise _size_error("dim_head", sizes["dim_head"], "rotary positions turn pairs: an even number is needed")


def _size_error(name: str, size: int, reason: str) -> ConfigError:
    what, where = f"{name} is {size}; {reason}.", f"TransformerBlock({name}=...)"
    return ConfigError(what, asked_by=where, field=name, value=size, path=name, file=None, line=None)


def _four(modules: FinetuneModules | None) -> tuple[FinetuneModule | None, ...]:
    if modules is None:
        return (None,) * len(_PLACES)
    if len(modules) != len(_PLACES):
        raise InputError(
            f"{len(modules)} finetune_modules are given; there are four places, {', '.join(_PLACES)}.",
            asked_by="TransformerBlock(finetune_modules=...)",
            hint="None leaves a place as it is: (lora_q, None, lora_v, None)",
        )
    return tuple(modules)


@final
class _Finetune(nn.Module):
    """The constructor's finetune modules: those that are torch modules are trained and saved with the block."""

    def __init__(self, places: tuple[FinetuneModule | None, ...]) -> None:
        super().__init__()
        for name, place in zip(_PLACES, places, strict=True):
            setattr(self, name, place)
        self.register_load_state_dict_pre_hook(_keep_when_absent)  # type: ignore[no-untyped-call]

    @property
    def places(self) -> tuple[FinetuneModule | None, ...]:
        """q, k, v and o."""
        return tuple(getattr(self, name) for name in _PLACES)


def _keep_when_absent(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state of the block alone load: complete it with what the finetune modules hold."""
    own: Mapping[str, Any] = module.state_dict(prefix=prefix)
    if own.keys().isdisjoint(state):
        state.update(own)


def _plain_attention(shape: BlockShape, scale: float, dropout: float) -> nn.Module:
    n, d = shape.heads, shape.dim_head
    config = TransformerConfig(num_layers=1, hidden_size=n * d, num_attention_heads=n, num_query_groups=1)
    request = CoreAttentionRequest(
        context=BuildContext(),
        num_attention_heads=n,
        num_query_groups=1,
        head_size=d,
        value_head_size=d,
        dropout=dropout,
    )
    return DotProductAttention(config, request=request, layer_number=1, softmax_scale=scale)


@final
class _FusedAttention(nn.Module):
    """The same by `torch.nn.functional.scaled_dot_product_attention`, whose kernels hold no matrix of scores."""

    def __init__(self, shape: BlockShape, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask) -> Tensor:
        """Attend from ``[b, s, n, d]`` to ``[b, t, 1, d]``, causally and to what is no padding."""
        s, t, device = query.shape[1], key.shape[1], query.device
        plain = mask.is_plain_causal()
        visible = None if plain else mask.as_bool(s, t, device=device)
        seeing = None if plain else mask.seeing_rows(s, t, device=device)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),  # [b, s, n, d] -> [b, n, s, d]
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible if seeing is None or visible is None else visible | ~seeing,
            is_causal=plain,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=True,
        ).transpose(1, 2)
        # Not every kernel turns the softmax of a row without keys into zeros.
        return attended if seeing is None else attended * seeing.transpose(1, 2)
