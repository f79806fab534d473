"""What Apex's functions document, computed by definition; of an Apex whose kernels are torch.library.custom_op."""

from __future__ import annotations

import torch


def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    assert input.dtype == weight.dtype == bias.dtype, "the kernel for one dtype reads others' bits as its own"
    assert tuple(normalized_shape) == tuple(weight.shape)
    return _layer_norm(input, weight, bias, eps).to(input.dtype)


def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    assert input.dtype == weight.dtype, "the kernel for one dtype reads others' bits as its own"
    assert tuple(normalized_shape) == tuple(weight.shape)
    return _rms_norm(input, weight, eps).to(input.dtype)


def mixed_dtype_fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    assert not torch.compiler.is_compiling(), "it is no operator: it would break the graph"
    return _layer_norm(input, weight, bias, eps).to(weight.dtype)


def mixed_dtype_fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    assert not torch.compiler.is_compiling(), "it is no operator: it would break the graph"
    return _rms_norm(input, weight, eps).to(weight.dtype)


def _layer_norm(x, weight, bias, eps):
    x = x.float()
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.float() + bias.float()


def _rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()
