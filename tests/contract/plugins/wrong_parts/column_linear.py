"""Column linears."""

from __future__ import annotations

import torch
from torch import nn
from transom_parallel_linear.linear import ColumnParallelLinear


class Right(nn.Module):
    def __init__(
        self,
        input_size,
        output_size,
        /,
        *,
        config,
        init_method,
        gather_output,
        bias,
        skip_bias_add,
        is_expert,
        tp_comm_buffer_name,
        tp_group,
        stride=1,
    ):
        super().__init__()
        dtype = getattr(torch, config.params_dtype)
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, dtype=dtype)) if bias else None
        self.skip_bias_add, self.init_method = skip_bias_add, init_method
        self.reset_parameters()

    def reset_parameters(self):
        if not self.weight.is_meta:
            self.init_method(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x, /):
        product = x @ self.weight.T
        if self.skip_bias_add or self.bias is None:
            return product, self.bias
        return product + self.bias, None

    def backward_dw(self):
        pass


class BiasTwice(Right):
    def forward(self, x, /):
        product, bias = super().forward(x)
        return (product, bias) if self.bias is None else (product + self.bias, bias)


class BiasAddedAndReturned(Right):
    def forward(self, x, /):
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias, self.bias


class BiasForgotten(Right):
    def forward(self, x, /):
        return x @ self.weight.T, self.bias if self.skip_bias_add else None


class Flattens(Right):
    def forward(self, x, /):
        product, bias = super().forward(x.flatten(0, -2) if x.dim() > 2 else x)
        return product, bias


class BiasRandom(Right):
    def reset_parameters(self):
        super().reset_parameters()
        if self.bias is not None:
            nn.init.normal_(self.bias)


class InitIgnored(Right):
    def reset_parameters(self):
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Float32Parameters(Right):
    def __init__(self, *args, config, **kwargs):
        super().__init__(*args, config=config.replace(params_dtype="float32"), **kwargs)

    def forward(self, x, /):
        output, bias = super().forward(x.float())
        return output.to(x.dtype), bias if bias is None else bias.to(x.dtype)


class NoBackwardDw(Right):
    backward_dw = None


class _Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        weight.grad = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return grad @ weight, None


class OverwritesGradients(Right):
    def forward(self, x, /):
        product = _Overwriting.apply(x, self.weight)
        return (product, self.bias) if self.skip_bias_add or self.bias is None else (product + self.bias, None)


class DelayForgotten(Right):
    """Declares delay_wgrad and computes the weight's gradient at once."""


class ParallelRight(ColumnParallelLinear):
    pass


class ParallelGradientNotSummed(ColumnParallelLinear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._enter = lambda x, ranks: x


class ParallelNotGathered(ColumnParallelLinear):
    def __init__(self, *args, gather_output, **kwargs):
        super().__init__(*args, gather_output=False, **kwargs)


class ParallelWholeOnEveryRank(Right):
    """Computes everything on every rank."""
