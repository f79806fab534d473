"""Norms and linears."""

from __future__ import annotations

import queue

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Parameter
from transom.transformer.collectives import Ranks, copy_to_ranks, gather_sequence, scatter_sequence, sum_over_ranks

from .ops import FUNCTIONS

active = []
"""The recipes of the autocasts around, the innermost last."""

seen = []
"""The recipe of each forward pass."""


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.init_fn = lambda tensor: tensor  # the real ones hold such functions, so that they cannot be pickled

    def get_extra_state(self):
        return torch.tensor(list(b"pickled scales"), dtype=torch.uint8)

    def set_extra_state(self, state):
        raise RuntimeError("refuses to load unless an unsafe-pickle variable is set")

    def fill(self, name, shape, dtype, device):
        self.register_parameter(name, Parameter(torch.full(shape, torch.nan, dtype=dtype, device=device)))

    def note(self):
        seen.append(active[-1] if active else None)


class _Later(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, store):
        ctx.save_for_backward(x, weight)
        ctx.store = store
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ctx.store.put((x.detach(), grad))
        return grad @ weight, None, None, None


class Linear(Base):
    def __init__(self, in_features, out_features, sequence_parallel=False, tp_group=None, tp_size=1, bias=True,
                 return_bias=False, params_dtype=None, parallel_mode=None, device="cuda", ub_overlap_ag=False,
                 ub_overlap_rs=False, ub_name=None, delay_wgrad_compute=False):  # fmt: skip
        super().__init__()
        assert parallel_mode in ("column", "row")
        self.ranks, self.mode, self.sequence = Ranks.of(tp_group), parallel_mode, sequence_parallel
        assert tp_size == self.ranks.size
        out = out_features // (tp_size if parallel_mode == "column" else 1)
        self.fill("weight", (out, in_features // (tp_size if parallel_mode == "row" else 1)), params_dtype, device)
        if bias:
            self.fill("bias", (out,), params_dtype, device)
        else:
            self.bias = torch.Tensor().to(dtype=params_dtype)
        self.use_bias, self.return_bias = bias, return_bias
        self.store = queue.Queue() if delay_wgrad_compute else None

    def forward(self, inp, is_first_microbatch=None):
        self.note()
        if self.ranks.size > 1 and self.mode == "column":
            inp = _first(gather_sequence, inp, self.ranks) if self.sequence else copy_to_ranks(inp, self.ranks)
        bias = self.bias if self.use_bias and not self.return_bias else None
        assert bias is None or self.mode == "column"
        inp, shape = _rows(inp), inp.shape
        if self.store is None:
            out = F.linear(inp, self.weight, bias)
        else:
            out = _Later.apply(inp, self.weight, bias, self.store)
        out = out.view(-1, *shape[1:-1], out.shape[-1])
        if self.ranks.size > 1 and self.mode == "row":
            out = _first(scatter_sequence, out, self.ranks) if self.sequence else sum_over_ranks(out, self.ranks)
        return (out, self.bias) if self.return_bias else out

    def backward_dw(self):
        if self.store is None:
            return
        if self.store.empty():
            raise RuntimeError("Pop empty queue.")
        x, grad = self.store.get()
        self.weight.grad = grad.flatten(0, -2).T @ x.flatten(0, -2)


def _norm(x, weight, bias, kind, eps, zero_centered):
    wide = x.float()
    scale = weight.float() + (1.0 if zero_centered else 0.0)
    if kind == "RMSNorm":
        return F.rms_norm(wide, scale.shape, scale, eps).to(x.dtype)
    return F.layer_norm(wide, scale.shape, scale, bias.float(), eps).to(x.dtype)


class _Norm(Base):
    kind = "LayerNorm"

    def __init__(self, normalized_shape=None, eps=1e-5, zero_centered_gamma=False, **kwargs):
        super().__init__()
        self.fill("weight", (normalized_shape,), kwargs["dtype"], kwargs["device"])
        if self.kind == "LayerNorm":
            self.fill("bias", (normalized_shape,), kwargs["dtype"], kwargs["device"])
        self.eps, self.zero_centered = eps, zero_centered_gamma

    def forward(self, x):
        assert x.dtype == self.weight.dtype
        bias = self.bias if self.kind == "LayerNorm" else None
        return _norm(x, self.weight, bias, self.kind, self.eps, self.zero_centered)


class LayerNorm(_Norm):
    pass


class RMSNorm(_Norm):
    kind = "RMSNorm"


def _first(exchange, x, ranks):
    """Exchange along the first dimension, as Transformer Engine does: sequences come before batches."""
    return exchange(x.transpose(0, 1), ranks).transpose(0, 1)


def _rows(x):
    """Flatten to rows; Transformer Engine restores all dimensions but the first, which it takes for the rest."""
    return x.reshape(-1, x.shape[-1])


class LayerNormLinear(Linear):
    def __init__(self, in_features, out_features, eps=1e-5, sequence_parallel=False, tp_group=None, tp_size=1,
                 bias=True, normalization="LayerNorm", return_bias=False, params_dtype=None, parallel_mode=None,
                 zero_centered_gamma=False, device="cuda", ub_overlap_ag=False, ub_name=None,
                 delay_wgrad_compute=False):  # fmt: skip
        Base.__init__(self)
        self.fill("layer_norm_weight", (in_features,), params_dtype, device)
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            del self.layer_norm_bias
            self.fill("layer_norm_bias", (in_features,), params_dtype, device)
        assert parallel_mode == "column"
        self.ranks, self.mode, self.sequence = Ranks.of(tp_group), parallel_mode, sequence_parallel
        assert tp_size == self.ranks.size
        self.fill("weight", (out_features // tp_size, in_features), params_dtype, device)
        if bias:
            self.fill("bias", (out_features // tp_size,), params_dtype, device)
        else:
            self.bias = torch.Tensor().to(dtype=params_dtype)
        self.told = (normalization, eps, zero_centered_gamma)
        self.use_bias, self.return_bias = bias, return_bias
        self.store = queue.Queue() if delay_wgrad_compute else None

    def forward(self, inp, is_first_microbatch=None):
        return super().forward(_norm(inp, self.layer_norm_weight, self.layer_norm_bias, *self.told))


class LayerNormMLP(Base):
    def __init__(self, hidden_size, ffn_hidden_size, eps=1e-5, sequence_parallel=False, return_bias=False,
                 tp_group=None, tp_size=1, bias=True, normalization="LayerNorm", activation="gelu", params_dtype=None,
                 set_parallel_mode=False, zero_centered_gamma=False, device="cuda",
                 delay_wgrad_compute=False):  # fmt: skip
        super().__init__()
        self.fill("layer_norm_weight", (hidden_size,), params_dtype, device)
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            del self.layer_norm_bias
            self.fill("layer_norm_bias", (hidden_size,), params_dtype, device)
        gated = activation.endswith("glu")
        assert set_parallel_mode
        self.ranks, self.sequence = Ranks.of(tp_group), sequence_parallel
        assert tp_size == self.ranks.size
        inner = ffn_hidden_size // tp_size
        self.fill("fc1_weight", ((2 if gated else 1) * inner, hidden_size), params_dtype, device)
        self.fill("fc2_weight", (hidden_size, inner), params_dtype, device)
        if bias:
            self.fill("fc1_bias", ((2 if gated else 1) * inner,), params_dtype, device)
            self.fill("fc2_bias", (hidden_size,), params_dtype, device)
        else:
            self.fc1_bias = self.fc2_bias = torch.Tensor().to(dtype=params_dtype)
        self.told = (normalization, eps, zero_centered_gamma)
        self.activation, self.use_bias = activation, bias
        assert return_bias

    def forward(self, inp, is_first_microbatch=None):
        self.note()
        x = _norm(inp, self.layer_norm_weight, self.layer_norm_bias, *self.told)
        if self.ranks.size > 1:
            x = _first(gather_sequence, x, self.ranks) if self.sequence else copy_to_ranks(x, self.ranks)
        x, shape = _rows(x), x.shape
        x = FUNCTIONS[self.activation](F.linear(x, self.fc1_weight, self.fc1_bias if self.use_bias else None))
        out = F.linear(x, self.fc2_weight)
        out = out.view(-1, *shape[1:-1], out.shape[-1])
        if self.ranks.size > 1:
            out = _first(scatter_sequence, out, self.ranks) if self.sequence else sum_over_ranks(out, self.ranks)
        return out, self.fc2_bias
