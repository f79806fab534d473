"""What the kernels of FlashAttention document, by plain matrices: forward, and backward from out and denominator."""

from __future__ import annotations

import torch


def forward(q, k, v, *, scale, causal, left, right, softcap=0.0, slopes=None, dropout=0.0, used=None, empty=-torch.inf):
    """Attend rows of a batch; ``empty`` is the denominator's logarithm where a query sees nothing."""
    used = [k.shape[1]] * len(q) if used is None else used.tolist()
    seed = int(torch.randint(2**31, ())) if dropout else 0
    parts = [
        _one(q[b], k[b, :t], v[b, :t], scale, causal, left, right, softcap, slopes, dropout, seed + b, empty)
        for b, t in enumerate(used)
    ]
    out, lse = (torch.stack(x) for x in zip(*parts, strict=True))
    return out, lse, torch.tensor([seed, 0])


def packed(q, k, v, cu_q, cu_k, **told):
    """Attend packed sequences; tokens that belong to none are not written."""
    out = torch.full((*q.shape[:2], v.shape[-1]), torch.nan, dtype=q.dtype)
    lse = torch.full((q.shape[1], len(q)), torch.nan)
    seed = int(torch.randint(2**31, ())) if told.get("dropout") else 0
    for i, (a, b, c, d) in enumerate(_spans(cu_q, cu_k)):
        torch.manual_seed(seed + i) if seed else None
        out[a:b], lse[:, a:b] = (x[0] for x in _with_seed(seed + i, q[None, a:b], k[None, c:d], v[None, c:d], told))
    return out, lse, torch.tensor([seed, 0])


def _with_seed(seed, q, k, v, told):
    told = {"slopes": None, "softcap": 0.0, "dropout": 0.0, "empty": -torch.inf} | told
    out, lse = _one(q[0], k[0], v[0], told["scale"], told["causal"], told["left"], told["right"], told["softcap"],
                    told["slopes"], told["dropout"], seed, told["empty"])  # fmt: skip
    return out[None], lse[None]


def backward(dout, q, k, v, out, lse, dq, dk, dv, *, seed=0, **told):
    """Write gradients, with the weights computed anew from the denominator, and the rest from out and its gradient."""
    for b in range(len(q)):
        found = _one_backward(dout[b], q[b], k[b], v[b], out[b], lse[b], seed + b, **told)
        for into, grad in zip((dq, dk, dv), found, strict=True):
            into[b] = grad


def packed_backward(dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k, *, seed=0, **told):
    """The same for packed sequences."""
    for i, (a, b, c, d) in enumerate(_spans(cu_q, cu_k)):
        grads = _one_backward(dout[a:b], q[a:b], k[c:d], v[c:d], out[a:b], lse[:, a:b], seed + i, **told)
        dq[a:b], dk[c:d], dv[c:d] = grads


def _spans(cu_q, cu_k):
    cu_q, cu_k = cu_q.tolist(), cu_k.tolist()
    return zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True)


def _scores(q, k, scale, causal, left, right, softcap, slopes):
    """Give scores ``[n, s, t]``, their derivative by the raw ones, and who is hidden ``[s, t]``."""
    (s, n), (t, g) = q.shape[:2], k.shape[:2]
    raw = torch.einsum("snd,tnd->nst", q.float(), k.float().repeat_interleave(n // g, dim=1)) * scale
    scores, slope = raw, torch.ones_like(raw)
    if softcap:
        scores = softcap * torch.tanh(raw / softcap)
        slope = 1 - (scores / softcap).square()
    distance = torch.arange(t) - (torch.arange(s)[:, None] + t - s)
    if slopes is not None:
        scores = scores - slopes.float()[:, None, None] * distance.abs()
    hidden = torch.zeros(s, t, dtype=torch.bool)
    if causal:
        hidden |= distance > 0
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return scores, slope, hidden


def _kept(shape, dropout, seed):
    if not dropout:
        return torch.ones(shape)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= dropout) / (1 - dropout)


def _one(q, k, v, scale, causal, left, right, softcap, slopes, dropout, seed, empty):
    n, g = q.shape[1], k.shape[1]
    scores, _, hidden = _scores(q, k, scale, causal, left, right, softcap, slopes)
    scores = scores.masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(dim=-1)  # [n, s]
    weights = (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
    weights = weights * _kept(weights.shape, dropout, seed)
    out = torch.einsum("nst,tnd->snd", weights, v.float().repeat_interleave(n // g, dim=1))
    return out.to(q.dtype), lse.masked_fill(lse.isneginf(), empty)


def _one_backward(dout, q, k, v, out, lse, seed, *, scale, causal, left, right, softcap=0.0, slopes=None, dropout=0.0):
    n, g, d = q.shape[1], k.shape[1], q.shape[2]
    scores, slope, hidden = _scores(q, k, scale, causal, left, right, softcap, slopes)
    lse = torch.where(lse.isneginf(), torch.inf, lse)
    weights = (scores.masked_fill(hidden, -torch.inf) - lse[..., None]).exp()
    kept = _kept(weights.shape, dropout, seed)
    dout, out = dout.float(), out.float()
    dv = torch.einsum("nst,snd->tnd", weights * kept, dout)
    dweights = torch.einsum("snd,tnd->nst", dout, v.float().repeat_interleave(n // g, dim=1)) * kept
    dscores = weights * (dweights - (dout * out).sum(-1).T[..., None]) * slope * scale
    dq = torch.einsum("nst,tnd->snd", dscores, k.float().repeat_interleave(n // g, dim=1))
    dk = torch.einsum("nst,snd->tnd", dscores, q.float())
    dk, dv = dk.unflatten(1, (g, -1)).sum(2), dv.unflatten(1, (g, -1)).sum(2)
    assert dq.shape[-1] == d
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
