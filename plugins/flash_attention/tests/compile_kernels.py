"""Compile FlashAttention 4's kernels for a device that is not there: ``python compile_kernels.py CASE``, as JSON.

Run by an interpreter that has flash-attn-4. Nothing runs: tensors are fake, and what is made is machine code for
compute capability 9.0. The plugin's own calls are what is compiled.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(FLASH_ATTENTION_ARCH="sm_90", CUTE_DSL_ARCH="sm_90a", FLASH_ATTENTION_NUM_SMS="132")

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transom_flash_attention import fa4
from transom_flash_attention.call import Call, Forward


def compile_case(
    *, head_size, value_head_size=None, groups=2, dtype="bfloat16", causal=True, left=-1, right=-1, softcap=0.0,
    form="rows", train=True,
) -> int:  # fmt: skip
    """Compile forward, and backward to train; return how many kernels of attention were made."""
    from flash_attn.cute import interface

    made = [interface._flash_attn_fwd.compile_cache, interface._flash_attn_bwd.compile_cache]
    before = sum(len(cache.cache) for cache in made)
    with FakeTensorMode():
        _call(head_size, value_head_size or head_size, groups, dtype, causal, left, right, softcap, form, train)
    return sum(len(cache.cache) for cache in made) - before


def _call(d, dv, groups, dtype, causal, left, right, softcap, form, train) -> None:
    def empty(*shape, of=dtype):
        return torch.empty(*shape, dtype=getattr(torch, of), device="cuda")

    lead = (512,) if form == "packed" else (2, 256)
    query, key, value = empty(*lead, 8, d), empty(*lead, groups, d), empty(*lead, groups, dv)
    starts = empty(3, of="int32") if form == "packed" else None
    used = empty(2, of="int32") if form in ("used", "pages") else None
    if form == "pages":
        query, key, value = empty(2, 1, 8, d), empty(5, 128, groups, d), empty(5, 128, groups, dv)
    longest = 256 if form == "packed" else 0
    table = empty(2, 2, of="int32") if form == "pages" else None
    call = Call(starts, starts, longest, longest, used, table, None, 0.1, causal, left, right, softcap, 0.0, False)
    found = fa4.forward(query, key, value, call)
    assert (found.out.shape, found.out.dtype) == ((*query.shape[:-1], dv), query.dtype)
    if train:
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        inputs = (query, key, value)
        fa4.backward(torch.empty_like(found.out), inputs, Forward(found.out, found.lse), grads, call)


if __name__ == "__main__":
    print(json.dumps([compile_case(**case) for case in json.loads(sys.argv[1])]))
