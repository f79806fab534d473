"""Every call into Transformer Engine. It is imported by the first of them, never by this module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformer_engine.pytorch import DotProductAttention, LayerNormLinear, LayerNormMLP, Linear

    from transom_te_linear.options import TeOptions

__all__ = [
    "apply_attention",
    "apply_linear",
    "apply_mlp",
    "apply_norm_linear",
    "apply_packed_attention",
    "compute_weight_gradient",
    "make_activation",
    "make_attention",
    "make_linear",
    "make_mlp",
    "make_norm",
    "make_norm_linear",
    "scaling",
]


def here() -> torch.device:
    """Return the device on which tensors are made now."""
    return torch.empty(0).device


def make_linear(
    input_size: int,
    output_size: int,
    *,
    mode: str,
    bias: bool,
    return_bias: bool,
    dtype: torch.dtype,
    group: ProcessGroup | None,
    sequence_parallel: bool,
    delay: bool,
    overlap: bool,
    name: str | None,
) -> nn.Module:
    """Make a linear of which this rank holds a part: ``mode`` is ``"column"`` or ``"row"``; sizes are the whole's."""
    from transformer_engine.pytorch import Linear

    made = Linear(
        in_features=input_size,
        out_features=output_size,
        bias=bias,
        return_bias=return_bias,
        params_dtype=dtype,
        parallel_mode=mode,
        tp_group=group,
        tp_size=1 if group is None else group.size(),
        sequence_parallel=sequence_parallel,
        delay_wgrad_compute=delay,
        ub_overlap_ag=overlap,
        ub_overlap_rs=overlap,
        ub_name=name,
        device=_device(),
    )
    return cast(nn.Module, made)


def apply_linear(linear: Linear, x: Tensor, first: bool | None) -> tuple[Tensor, Tensor | None]:
    """Map ``x``; ``first`` says whether this is the first micro-batch of a step, `None` = not known."""
    out = linear(x, is_first_microbatch=first)
    return out if isinstance(out, tuple) else (out, None)


def compute_weight_gradient(linear: Linear) -> None:
    """Compute the weight's gradient of one backward pass that put it off, in place of the gradient that is there."""
    linear.backward_dw()


def make_norm(kind: str, width: int, *, eps: float, dtype: torch.dtype, zero_centered: bool) -> nn.Module:
    """Make a LayerNorm or an RMSNorm."""
    from transformer_engine.pytorch import LayerNorm, RMSNorm

    if kind == "RMSNorm":
        return cast(
            nn.Module,
            RMSNorm(width, eps=eps, zero_centered_gamma=zero_centered, dtype=dtype, device=_device()),
        )
    made = LayerNorm(width, eps=eps, zero_centered_gamma=zero_centered, dtype=dtype, device=_device())
    return cast(nn.Module, made)


def make_activation(name: str) -> nn.Module:
    """Make a non-linearity by its class's name in ``transformer_engine.pytorch.ops``."""
    from transformer_engine.pytorch import ops

    made = {
        "GELU": ops.GELU,
        "GEGLU": ops.GEGLU,
        "SiLU": ops.SiLU,
        "SwiGLU": ops.SwiGLU,
        "ReLU": ops.ReLU,
        "ReGLU": ops.ReGLU,
        "SReLU": ops.SReLU,
        "SReGLU": ops.SReGLU,
        "QGELU": ops.QGELU,
        "QGEGLU": ops.QGEGLU,
    }[name]()
    return cast(nn.Module, made)


def make_attention(
    heads: int, groups: int, head_size: int, *, scale: float | None, dropout: float, softmax: str, layer_number: int
) -> nn.Module:
    """Make a core attention over inputs ``[b, s, n, d]``."""
    from transformer_engine.pytorch import DotProductAttention

    made = DotProductAttention(
        num_attention_heads=heads,
        kv_channels=head_size,
        num_gqa_groups=groups,
        attention_dropout=dropout,
        qkv_format="bshd",
        attn_mask_type="no_mask",
        softmax_scale=scale,
        softmax_type=softmax,
        layer_number=layer_number,
    )
    return cast(nn.Module, made)


def apply_attention(
    attention: DotProductAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kind: str,
    window: tuple[int, int],
    hidden: Tensor | None = None,
) -> Tensor:
    """Attend; ``kind`` names a mask, ``window`` has -1 for unbounded, ``hidden`` is True where a key is not seen."""
    out = attention(
        query,
        key,
        value,
        attention_mask=hidden,
        qkv_format="bshd",
        attn_mask_type=kind,
        window_size=window,
        bottom_right_diagonal=True,
    )
    return cast(Tensor, out)


def apply_packed_attention(
    attention: DotProductAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    kind: str,
    window: tuple[int, int],
) -> Tensor:
    """Attend within packed sequences ``[tokens, n, d]``, which begin at ``starts`` of queries and of keys."""
    out = attention(
        query,
        key,
        value,
        qkv_format="thd",
        cu_seqlens_q=starts[0],
        cu_seqlens_kv=starts[1],
        max_seqlen_q=longest[0],
        max_seqlen_kv=longest[1],
        attn_mask_type=kind,
        window_size=window,
        bottom_right_diagonal=True,
    )
    return cast(Tensor, out)


def make_norm_linear(
    input_size: int,
    output_size: int,
    *,
    kind: str,
    eps: float,
    zero_centered: bool,
    bias: bool,
    return_bias: bool,
    dtype: torch.dtype,
    group: ProcessGroup | None,
    sequence_parallel: bool,
    delay: bool,
    overlap: bool,
    name: str | None,
) -> nn.Module:
    """Make a norm and a column linear in one module; sizes are those over all ranks."""
    from transformer_engine.pytorch import LayerNormLinear

    made = LayerNormLinear(
        in_features=input_size,
        out_features=output_size,
        eps=eps,
        normalization=kind,
        zero_centered_gamma=zero_centered,
        bias=bias,
        return_bias=return_bias,
        params_dtype=dtype,
        parallel_mode="column",
        tp_group=group,
        tp_size=1 if group is None else group.size(),
        sequence_parallel=sequence_parallel,
        delay_wgrad_compute=delay,
        ub_overlap_ag=overlap,
        ub_name=name,
        device=_device(),
    )
    return cast(nn.Module, made)


def apply_norm_linear(linear: LayerNormLinear, x: Tensor, first: bool | None) -> tuple[Tensor, Tensor | None]:
    """Norm and map ``x``."""
    out = linear(x, is_first_microbatch=first)
    return out if isinstance(out, tuple) else (out, None)


def make_mlp(
    hidden_size: int,
    inner_size: int,
    *,
    kind: str,
    eps: float,
    zero_centered: bool,
    activation: str,
    bias: bool,
    dtype: torch.dtype,
    group: ProcessGroup | None,
    sequence_parallel: bool,
    delay: bool,
) -> nn.Module:
    """Make a norm and an MLP in one module, whose last bias is returned; sizes are those over all ranks."""
    from transformer_engine.pytorch import LayerNormMLP

    made = LayerNormMLP(
        hidden_size=hidden_size,
        ffn_hidden_size=inner_size,
        eps=eps,
        normalization=kind,
        zero_centered_gamma=zero_centered,
        activation=activation,
        bias=bias,
        return_bias=True,
        params_dtype=dtype,
        set_parallel_mode=True,
        sequence_parallel=sequence_parallel,
        tp_group=group,
        tp_size=1 if group is None else group.size(),
        delay_wgrad_compute=delay,
        device=_device(),
    )
    return cast(nn.Module, made)


def apply_mlp(mlp: LayerNormMLP, x: Tensor, first: bool | None) -> tuple[Tensor, Tensor | None]:
    """Map ``x``; give the bias that was not added, too."""
    out, bias = mlp(x, is_first_microbatch=first)
    return out, bias if bias is not None and bias.numel() else None


def scaling(options: TeOptions) -> AbstractContextManager[Any]:
    """Compute in FP8 inside the context, as the options say; without a recipe, as the program says around it."""
    if options.recipe is None:
        return nullcontext()
    from transformer_engine.pytorch import autocast

    return cast(AbstractContextManager[Any], autocast(enabled=True, recipe=_recipe(options)))


def _recipe(options: TeOptions) -> Any:
    from transformer_engine.common.recipe import DelayedScaling, Float8BlockScaling, Float8CurrentScaling

    if options.recipe == "current":
        return Float8CurrentScaling()
    if options.recipe == "block":
        return Float8BlockScaling()
    return DelayedScaling(margin=options.margin, amax_history_len=options.amax_history, amax_compute_algo=options.amax)


def _device() -> str | torch.device:
    device = here()
    return "meta" if device.type == "meta" else device  # Transformer Engine compares it with the string
