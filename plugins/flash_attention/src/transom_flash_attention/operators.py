"""FlashAttention as operators of torch, with fake kernels and derivatives, so that one graph holds them.

A sink, a logit beside the scores that takes weight and gives nothing, joins the softmax after the kernel has run: the
output shrinks by ``sigmoid(lse - sink)`` and the denominator grows. The kernels' backward passes compute the weights
anew from the denominator they are given, and the rest from output and gradient, so that given the grown one they are
right with sinks too, in every version.

Source: Dao 2023 (FlashAttention-2), section 3.1, for what backward needs; Xiao et al. 2024 for sinks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transom_flash_attention import fa2, fa3, fa4
from transom_flash_attention.call import Call, Forward

__all__ = ["attend", "attend_backward"]

_FORWARD: dict[int, Callable[[Tensor, Tensor, Tensor, Call], Forward]] = {
    2: fa2.forward,
    3: fa3.forward,
    4: fa4.forward,
}
_BACKWARD = {2: fa2.backward, 4: fa4.backward}


@torch.library.custom_op("transom_flash_attention::attend", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor | None,
    key_starts: Tensor | None,
    real: Tensor | None,
    used: Tensor | None,
    table: Tensor | None,
    slopes: Tensor | None,
    sink: Tensor | None,
    longest: int,
    longest_keys: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    dropout: float,
    deterministic: bool,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend by the kernels of a version.

    Args:
        query: ``[b, s, n, d]``, or ``[tokens, n, d]`` of packed sequences.
        key: ``[b, t, g, d]``, ``[tokens, g, d]``, or pages ``[pages, size, g, d]``.
        value: ``[b, t, g, dv]``, ``[tokens, g, dv]``, or pages ``[pages, size, g, dv]``.
        starts: as in `Call`, and so are all that are not named here.
        key_starts: as in `Call`.
        real: bool ``[tokens]``: False where a query is padding, whose output is zeros.
        used: as in `Call`.
        table: as in `Call`.
        slopes: as in `Call`.
        sink: float32 ``[n]``: a logit for each head.
        longest: as in `Call`.
        longest_keys: as in `Call`.
        scale: as in `Call`.
        causal: as in `Call`.
        left: as in `Call`.
        right: as in `Call`.
        softcap: as in `Call`.
        dropout: as in `Call`.
        deterministic: as in `Call`.
        version: 2, 3 or 4.

    Returns:
        what `Forward` has, the sink included.
    """
    told = (slopes, scale, causal, left, right, softcap, dropout, deterministic)
    call = Call(starts, key_starts, longest, longest_keys, used, table, *told)
    out, lse, random_state = _FORWARD[version](query, key, value, call)
    if real is not None:
        out, lse = out.masked_fill(~real[:, None, None], 0.0), lse.masked_fill(~real, torch.inf)
    if sink is not None:
        logit = sink[:, None]  # [n, 1] beside [b, n, s] or [n, tokens]
        share = torch.sigmoid(lse - logit)
        out, lse = out * _beside_heads(share).to(out.dtype), torch.logaddexp(lse, logit)
    if random_state is None:
        random_state = torch.zeros(2, dtype=torch.int64, device=query.device)
    return out.contiguous(), lse.contiguous(), random_state


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    *rows, tokens, heads, _size = query.shape
    return (
        query.new_empty(*rows, tokens, heads, value.shape[-1]),
        query.new_empty(*rows, heads, tokens, dtype=torch.float32),
        query.new_empty(2, dtype=torch.int64),
    )


@torch.library.custom_op("transom_flash_attention::attend_backward", mutates_args=())
def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    random_state: Tensor,
    starts: Tensor | None,
    key_starts: Tensor | None,
    slopes: Tensor | None,
    sink: Tensor | None,
    longest: int,
    longest_keys: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    dropout: float,
    deterministic: bool,
    version: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of queries, keys, values and sinks; of the latter ``[0]`` where there are none.

    Args:
        grad: of ``out``, which is followed by what `attend` was given and gave.
        query: as in `attend`, and so are all others.
        key: as in `attend`.
        value: as in `attend`.
        out: that `attend` gave.
        lse: that `attend` gave.
        random_state: that `attend` gave.
        starts: as in `attend`.
        key_starts: as in `attend`.
        slopes: as in `attend`.
        sink: as in `attend`.
        longest: as in `attend`.
        longest_keys: as in `attend`.
        scale: as in `attend`.
        causal: as in `attend`.
        left: as in `attend`.
        right: as in `attend`.
        softcap: as in `attend`.
        dropout: as in `attend`.
        deterministic: as in `attend`.
        version: as in `attend`.
    """
    told = (slopes, scale, causal, left, right, softcap, dropout, deterministic)
    call = Call(starts, key_starts, longest, longest_keys, None, None, *told)
    # Kernels do not write to tokens that belong to no packed sequence.
    make = torch.empty_like if starts is None else torch.zeros_like
    grads = (make(query), make(key), make(value))
    _BACKWARD[version](grad.contiguous(), (query, key, value), Forward(out, lse, random_state), grads, call)
    return *grads, _sink_gradient(grad, out, lse, sink)


@attend_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sink = others[6]
    made = query.new_empty(0, dtype=torch.float32) if sink is None else torch.empty_like(sink)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), made


def _sink_gradient(grad: Tensor, out: Tensor, lse: Tensor, sink: Tensor | None) -> Tensor:
    """Compute ``-Σ p · (grad · out)`` over all queries, where p is the weight that a head's sink takes."""
    if sink is None:
        return grad.new_empty(0, dtype=torch.float32)
    taken = _beside_heads(torch.exp(sink[:, None] - lse))  # [..., s, n, 1]
    return -(taken * grad * out).float().sum(dim=-1).flatten(0, -2).sum(dim=0)


def _beside_heads(x: Tensor) -> Tensor:
    """Turn ``[..., n, s]`` into ``[..., s, n, 1]``."""
    return x.transpose(-1, -2).unsqueeze(-1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, starts, key_starts, _, _, _, slopes, sink, *numbers = inputs
    ctx.save_for_backward(query, key, value, *output, starts, key_starts, slopes, sink)
    ctx.numbers = numbers
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = (None,) * (7 + len(ctx.numbers))
    if grad is None:
        return None, None, None, *none
    saved = ctx.saved_tensors  # once: under activation recomputation they can be had once
    dq, dk, dv, dsink = attend_backward(grad, *saved, *ctx.numbers)
    return dq, dk, dv, *none[:6], None if saved[-1] is None else dsink, *none[7:]


attend.register_autograd(_differentiate, setup_context=_keep)
