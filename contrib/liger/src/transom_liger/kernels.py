"""Every call into Liger Kernel. It is imported by the first of them, never by this module.

The operators are taken from the modules that define them: these are the Triton kernels on every device, whatever other
back ends an environment variable of Liger Kernel's asks for.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

__all__ = ["cross_entropy", "geglu", "layer_norm", "rms_norm", "rotate", "swiglu"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """RMSNorm over the last dimension, scaled by ``weight + offset``; float32 inside, the dtype of ``x`` outside."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # "gemma": all of it in float32. Not in place: the gradient that comes may be another's too.
    return cast(Tensor, LigerRMSNormFunction.apply(x, weight, eps, offset, "gemma", False))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of ``x``; float32 inside, ``x``'s dtype outside."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return cast(Tensor, LigerLayerNormFunction.apply(x, weight, bias, eps))


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[gate, up] = x``, the halves of the last dimension."""
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    # Flat: its backward pass gives two dimensions whatever came in.
    return torch.unflatten(LigerFusedGateUpSiLUMulFunction.apply(x.flatten(0, -2)), 0, x.shape[:-1])


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up``, GELU by its tanh approximation."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    return cast(Tensor, LigerGELUMulFunction.apply(gate, up))


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate heads ``[b, n, s, d]`` by half-split pairs, in place where their memory is ``[b, s, n, d]``."""
    from liger_kernel.ops.rope import LigerRopeFunction

    return cast(tuple[Tensor, Tensor], LigerRopeFunction.apply(query, key, cos, sin))


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """Give the losses ``[t]`` of tokens ``[t, h]``, the logits made for some of them at a time; sums are in float32."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    losses, _, _, _ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, labels, bias, None, ignore_index, z_loss, 0.0, "none", softcap, False, torch.float32
    )
    return cast(Tensor, losses)
