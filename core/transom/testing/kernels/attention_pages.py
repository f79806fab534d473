"""Cases of core attentions that read a paged cache in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.kv_cache import Pages
from transom.testing.case import Case, CaseSkipped
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.subject import Subject, config_for
from transom.transformer.attention_mask import AttentionMask

__all__ = ["attention_pages_cases"]

_SIZES = (16, 128, 256)
_HEADS, _GROUPS, _WIDTH = 4, 4, 32


def attention_pages_cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of reading pages, for what can be asked of it in decoding.

    Args:
        subject: what is tested.
    """
    if not {"causal", "positions"} <= subject.features or "infer" not in subject.card.modes:
        return
    for size in _SIZES:
        shows = f"keys and values in pages of {size} positions are read as if they were side by side"
        check = partial(_check, subject, size)
        yield Case("contract", f"pages_{size}", shows, check, subject.dtype, subject.device)


def _check(subject: Subject, size: int) -> None:
    module = _make(subject)
    if not hasattr(module, "attend_pages"):
        raise CaseSkipped("it reads no pages: what they hold is copied together for it")
    lengths = torch.tensor([size // 2 + 1, 2 * size - 3])
    pages = _pages(subject, size, lengths)
    dtype = getattr(torch, subject.dtype)
    for s in (1, 3):
        query = torch.randn(2, s, _HEADS, _WIDTH).to(subject.device, dtype)
        positions = (lengths[:, None] - s + torch.arange(s)).to(subject.device)
        mask = AttentionMask(causal=True, query_positions=positions)
        with torch.no_grad():
            found = module.attend_pages(query, pages, mask=mask)
            wanted = module(query, *pages.gathered(), mask=mask)
        assert_close(
            found, wanted.cpu().double(), TOLERANCES[subject.dtype].outputs, f"the output of {s} queries a row"
        )


def _make(subject: Subject) -> Any:
    request = CoreAttentionRequest(
        context=replace(subject.context(), mode="infer"),
        features=frozenset({"causal", "positions"}),
        num_attention_heads=_HEADS,
        num_query_groups=_GROUPS,
        head_size=_WIDTH,
        value_head_size=_WIDTH,
    )
    config = config_for(hidden_size=_HEADS * _WIDTH, num_attention_heads=_HEADS, params_dtype=subject.dtype)
    return subject.build(request, config, request=request, layer_number=1).eval()


def _pages(subject: Subject, size: int, lengths: torch.Tensor) -> Pages:
    """Make pages in no order, of which two rows have two each."""
    dtype = getattr(torch, subject.dtype)
    key, value = (torch.randn(6, size, _GROUPS, _WIDTH).to(subject.device, dtype) for _ in range(2))
    table = torch.tensor([[5, 2], [1, 4]], device=subject.device)
    return Pages(key, value, table, lengths.to(subject.device), int(lengths.max()), dtype)
