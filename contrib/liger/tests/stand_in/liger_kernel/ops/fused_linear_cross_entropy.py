"""Token cross-entropy from hidden states by plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from liger_kernel.ops.by_formula import backward, forward

_CHUNK_MEM_CONST = 1


class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ce_weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        accum_dtype=None,
        use_token_scaling=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
        ce_impl=None,
        ce_mode=None,
        chunk_mem_const=_CHUNK_MEM_CONST,
    ):
        assert ce_weight is None
        assert reduction == "none"
        assert accum_dtype is torch.float32

        def formula(x, w, b, labels):
            logits = F.linear(x, w, b).float()
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
            penalty = lse_square_scale * logits.logsumexp(-1).square()
            return losses + penalty.masked_fill(labels == ignore_index, 0.0)

        return forward(ctx, formula, _input, weight, bias, target), None, None, None

    @staticmethod
    def backward(ctx, grad_output, *_):
        x, w, b, _ = backward(ctx, grad_output)
        return x, w, None, b, *[None] * (len(ctx.needs_input_grad) - 4)
