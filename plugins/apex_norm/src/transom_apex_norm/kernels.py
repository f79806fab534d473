"""Every call into NVIDIA Apex. It is imported by the first of them, never by this module.

The functions that fuse one dtype are custom operators in Apex, with fake kernels and derivatives, so that
``torch.compile(fullgraph=True)`` keeps them in one graph. Its modules would fall back to plain torch there.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

__all__ = ["fast_layer_norm", "layer_norm", "mixed_layer_norm", "mixed_rms_norm", "rms_norm"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, memory_efficient: bool) -> Tensor:
    """LayerNorm over the last dimension of ``x [..., h]``; all are of one dtype."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    out = fused_layer_norm_affine(
        x, weight, bias, normalized_shape=weight.shape, eps=eps, memory_efficient=memory_efficient
    )
    return cast(Tensor, out)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, memory_efficient: bool) -> Tensor:
    """RMSNorm over the last dimension of ``x [..., h]``; both are of one dtype."""
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    out = fused_rms_norm_affine(x, weight, normalized_shape=weight.shape, eps=eps, memory_efficient=memory_efficient)
    return cast(Tensor, out)


def mixed_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, memory_efficient: bool) -> Tensor:
    """LayerNorm of ``x`` in the dtype of ``weight`` and ``bias``, which may be another than that of ``x``."""
    from apex.normalization.fused_layer_norm import mixed_dtype_fused_layer_norm_affine

    out = mixed_dtype_fused_layer_norm_affine(
        x, weight, bias, normalized_shape=weight.shape, eps=eps, memory_efficient=memory_efficient
    )
    return cast(Tensor, out)


def mixed_rms_norm(x: Tensor, weight: Tensor, eps: float, *, memory_efficient: bool) -> Tensor:
    """RMSNorm of ``x`` in the dtype of ``weight``, which may be another than that of ``x``."""
    from apex.normalization.fused_layer_norm import mixed_dtype_fused_rms_norm_affine

    out = mixed_dtype_fused_rms_norm_affine(
        x, weight, normalized_shape=weight.shape, eps=eps, memory_efficient=memory_efficient
    )
    return cast(Tensor, out)


def fast_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, memory_efficient: bool) -> Tensor:
    """LayerNorm by the kernels of ``apex.contrib``, each for one width; all are of one dtype."""
    from apex.contrib.layer_norm.layer_norm import FastLayerNormFN

    return cast(Tensor, FastLayerNormFN.apply(x, weight, bias, eps, memory_efficient))
