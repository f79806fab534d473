"""Core attentions: `Right`, and what differs from it in one step."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
from transom import AttentionMask


class Right(nn.Module):
    """Attention in small steps, which subclasses get wrong one at a time."""

    def __init__(self, config, *, request, layer_number, softmax_scale=None, attention_dropout=None):
        super().__init__()
        self.config, self.request, self.layer = config, request, layer_number
        self.scale = self.choose_scale(request.head_size, softmax_scale)
        self.p = request.dropout if attention_dropout is None else attention_dropout
        if config.softmax_type == "learnable":
            self.softmax_offset = nn.Parameter(torch.empty(request.num_attention_heads, dtype=_dtype(config)))
            self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.softmax_offset)

    def forward(self, query, key, value, *, mask=None):
        mask = AttentionMask() if mask is None else mask
        s, t = query.shape[1], key.shape[1]
        scores = self.cap(self.score(query, self.spread(key)))
        bias = mask.as_bias(s, t, dtype=scores.dtype, device=scores.device)
        scores = scores if bias is None else self.add(scores, bias)
        visible = self.see(mask, s, t, scores.device)
        weights = self.weigh(scores, visible).to(value.dtype)
        return torch.einsum("bnst,btnd->bsnd", self.drop(weights), self.spread(value))

    def choose_scale(self, d, given):
        return 1 / math.sqrt(d) if given is None else given

    def score(self, query, key):
        return torch.einsum("bsnd,btnd->bnst", query, key) * self.scale

    def spread(self, x):
        return x.repeat_interleave(self.request.num_attention_heads // self.request.num_query_groups, dim=2)

    def cap(self, scores):
        cap = self.request.softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def add(self, scores, bias):
        return scores + bias

    def see(self, mask, s, t, device):
        return mask.as_bool(s, t, device=device, window=self.request.window)

    def weigh(self, scores, visible):
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        visible = torch.ones((), dtype=torch.bool, device=scores.device) if visible is None else visible
        seeing = visible.expand(scores.shape).any(dim=-1, keepdim=True)
        logits = wide.masked_fill(~visible & seeing, -torch.inf)
        sink = self.sink(wide)
        if sink is not None:
            logits = torch.cat([logits, sink.expand(*logits.shape[:-1], 1)], dim=-1)
        return logits.softmax(dim=-1)[..., : scores.shape[-1]] * seeing

    def sink(self, scores):
        if self.config.softmax_type == "off-by-one":
            return scores.new_zeros(1, 1, 1)
        return self.softmax_offset[:, None, None].to(scores) if self.config.softmax_type == "learnable" else None

    def drop(self, weights):
        return F.dropout(weights, self.p, self.training)


def _dtype(config):
    return getattr(torch, config.params_dtype)


class InvertedMask(Right):
    def see(self, mask, s, t, device):
        visible = super().see(mask, s, t, device)
        return None if visible is None else ~visible


class MaskIgnored(Right):
    def see(self, mask, s, t, device):
        return None


class BoolAsAdditive(Right):
    def weigh(self, scores, visible):
        return super().weigh(scores if visible is None else scores + visible, None)


class TopLeft(Right):
    def see(self, mask, s, t, device):
        visible = super().see(dataclasses.replace(mask, causal=False), s, t, device)
        triangle = torch.ones(s, t, dtype=torch.bool, device=device).tril()
        return visible if not mask.causal else triangle if visible is None else visible & triangle


class WindowOffByOne(Right):
    def see(self, mask, s, t, device):
        left, right = self.request.window or (None, None)
        return mask.as_bool(s, t, device=device, window=(None if left is None else left + 1, right))


class WindowReplacesMask(Right):
    def see(self, mask, s, t, device):
        mask = AttentionMask(causal=mask.causal) if self.request.window else mask
        return super().see(mask, s, t, device)


class KeepReplacesCausal(Right):
    def see(self, mask, s, t, device):
        return super().see(mask if mask.keep is None else dataclasses.replace(mask, causal=False), s, t, device)


class PrefixForgotten(Right):
    def see(self, mask, s, t, device):
        return super().see(dataclasses.replace(mask, prefix_lengths=None), s, t, device)


class PrefixOfTheFirstRow(Right):
    def see(self, mask, s, t, device):
        lengths = mask.prefix_lengths
        lengths = None if lengths is None else lengths[:1].expand(lengths.shape)
        return super().see(dataclasses.replace(mask, prefix_lengths=lengths), s, t, device)


class PaddingSegmentSeesItself(Right):
    def see(self, mask, s, t, device):
        segments = mask.query_segments
        segments = None if segments is None else segments.where(segments >= 0, 99)
        return super().see(dataclasses.replace(mask, query_segments=segments), s, t, device)


class EmptySlotsSeen(Right):
    def see(self, mask, s, t, device):
        positions = mask.key_positions
        return super().see(
            dataclasses.replace(mask, key_positions=None if positions is None else positions.clamp(min=0)), s, t, device
        )


class LeftPaddingOnly(Right):
    """Takes the number of padding tokens for where they are."""

    def see(self, mask, s, t, device):
        padding = mask.key_padding
        if padding is not None:
            absent = (~padding).sum(dim=1, keepdim=True)
            padding = torch.arange(t, device=device) >= absent
        return super().see(dataclasses.replace(mask, key_padding=padding), s, t, device)


class AlibiTopLeft(Right):
    def add(self, scores, bias):
        s, t = scores.shape[-2:]
        return scores + bias.roll(t - s, dims=-1) if s != t else scores + bias


class WrongScale(Right):
    def choose_scale(self, d, given):
        return 1 / d if given is None else given


class ScaleArgumentIgnored(Right):
    def choose_scale(self, d, given):
        return 1 / math.sqrt(d)


class LayerScalingNotUndone(Right):
    def score(self, query, key):
        scores = super().score(query, key)
        return scores / self.layer if self.config.apply_query_key_layer_scaling else scores


class GroupsInterleaved(Right):
    """Lets head i read group i % g, as `repeat` does, in place of i // (n / g)."""

    def spread(self, x):
        return x.repeat(1, 1, self.request.num_attention_heads // self.request.num_query_groups, 1)


class BiasTwice(Right):
    def add(self, scores, bias):
        return scores + 2 * bias


class BiasDetached(Right):
    def add(self, scores, bias):
        return scores + bias.detach()


class SoftcapForgotten(Right):
    def cap(self, scores):
        return scores


class SoftcapAfterBias(Right):
    def cap(self, scores):
        return scores

    def add(self, scores, bias):
        return super().cap(scores + bias)


class SinkForgotten(Right):
    def sink(self, scores):
        return None


class BlindRowsUniform(Right):
    def weigh(self, scores, visible):
        if visible is None:
            return scores.softmax(dim=-1)
        return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)


class BlindRowsNanBackward(Right):
    def weigh(self, scores, visible):
        if visible is not None:
            scores = scores + torch.zeros_like(scores).masked_fill(~visible, -torch.inf)
        return scores.softmax(dim=-1).nan_to_num(0.0)


class Overflows(Right):
    def weigh(self, scores, visible):
        weights = scores.exp() if visible is None else scores.exp() * visible
        return weights / weights.sum(dim=-1, keepdim=True)


class DropoutInEval(Right):
    def drop(self, weights):
        return F.dropout(weights, self.p, True)


class DropoutUnscaled(Right):
    def drop(self, weights):
        return weights * (torch.rand_like(weights) >= self.p) if self.training else weights


class DropoutOfTheConfig(Right):
    def drop(self, weights):
        return F.dropout(weights, self.request.dropout, self.training)


class DropoutSharedByHeads(Right):
    def drop(self, weights):
        return weights * F.dropout(torch.ones_like(weights[:, :1]), self.p, self.training)


class DropoutFromElsewhere(Right):
    """Draws from a generator of its own, which no seed reaches."""

    def drop(self, weights):
        generator = torch.Generator().manual_seed(torch.Generator().seed())
        kept = torch.rand(weights.shape, generator=generator) >= self.p
        return weights * kept / (1 - self.p) if self.training else weights


class DropoutForgottenBackward(Right):
    def drop(self, weights):
        return weights + (super().drop(weights) - weights).detach()


class GradientHalved(Right):
    def spread(self, x):
        x = super().spread(x)
        return x / 2 + (x / 2).detach()


class WritesToItsInput(Right):
    def score(self, query, key):
        scores = super().score(query, key)
        with torch.no_grad():
            query.mul_(self.scale)
        return scores


class ContiguousOnly(Right):
    """Reads memory as if heads always lay side by side."""

    def score(self, query, key):
        query = torch.as_strided(query, query.shape, torch.empty(query.shape, device="meta").stride())
        return super().score(query, key)


class WideOutput(Right):
    def forward(self, query, key, value, *, mask=None):
        return super().forward(query, key, value, mask=mask).float()


class Noisy(Right):
    def add(self, scores, bias):
        return scores

    def cap(self, scores):
        return scores + 1e-6 * torch.rand((), generator=torch.Generator().manual_seed(torch.Generator().seed()))


class AllocatesOnBuild(Right):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("table", torch.zeros(4, device="cpu"))


class NotPicklable(Right):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.identity = lambda x: x


class InferenceTable(Right):
    """Keeps what its first call made, which under inference mode no later training step can use."""

    table = None

    def drop(self, weights):
        if self.table is None:
            self.table = torch.ones_like(weights)
        return super().drop(weights * self.table)


class ReadsItsLayer(Right):
    """Reads an attribute that differs per layer in forward."""

    def cap(self, scores):
        return super().cap(scores * self.layer / self.layer)


class BreaksTheGraph(Right):
    def cap(self, scores):
        if scores.max().item() > 1e9:
            return scores * 0
        return super().cap(scores)


class RemembersTheLastCall(Right):
    """Adds a little of the last call's output."""

    last = 0.0

    def forward(self, query, key, value, *, mask=None):
        output = super().forward(query, key, value, mask=mask)
        output = output + 0.1 * self.last
        self.last = output.detach().mean()
        return output


class RefusesSoftcap(Right):
    @classmethod
    def supports(cls, request):
        if "softcap" in request.features:
            yield "no kernel for it was found"


class SupportsFails(Right):
    @classmethod
    def supports(cls, request):
        raise RuntimeError("libacme.so not found")


class SupportsDraws(Right):
    @classmethod
    def supports(cls, request):
        torch.rand(1)
        return ()


class Undeclared(Right):
    """Has no section in the card, and no objections."""


class WrongSignature(nn.Module):
    def __init__(self, config, *, request):
        super().__init__()


class NoModule:
    def __init__(self, config, *, request, layer_number, softmax_scale=None, attention_dropout=None):
        pass


@torch.library.custom_op("wrong_parts::softmax", mutates_args=())
def _softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(dim=-1)


@_softmax.register_fake
def _(x):
    return x.new_empty(x.shape[:-1])  # the kernel keeps the last dimension


class WrongFakeKernel(Right):
    def weigh(self, scores, visible):
        return torch.ops.wrong_parts.softmax(scores)
