"""Models: core's, and what differs from it."""

from __future__ import annotations

import dataclasses

import torch
from transom import AttentionMask
from transom.models.decoder_assembly import DecoderAssembly


def _wrong(change):
    """Make an assembly of decoders whose forward is wrapped."""

    class Assembly(DecoderAssembly):
        def __call__(self, config, submodules, *, request, tp_group=None):
            decoder = super().__call__(config, submodules, request=request, tp_group=tp_group)
            kind = type(decoder)
            decoder.__class__ = type(kind.__name__, (kind,), {"forward": change(kind.forward)})
            return decoder

    return Assembly()


Right = DecoderAssembly()


@_wrong
def BidirectionalByDefault(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        mask = AttentionMask() if mask is None else mask
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong


@_wrong
def BoolMaskInverted(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        mask = ~mask if isinstance(mask, torch.Tensor) else mask
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong


@_wrong
def MaskReplaced(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        return forward(self, tokens, input_pos=input_pos, labels=labels)

    return wrong


@_wrong
def LabelsShifted(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        labels = None if labels is None else labels.roll(-1, dims=1)
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong


@_wrong
def LossAveraged(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        output = forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)
        return output if labels is None else output.mean()

    return wrong


@_wrong
def NarrowLogits(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        output = forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)
        return output if labels is not None else output.to(next(self.parameters()).dtype)

    return wrong


@_wrong
def PositionsIgnored(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        if self.caches_are_enabled():
            return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)
        return forward(self, tokens, mask=mask, labels=labels)

    return wrong


@_wrong
def SegmentsForgotten(forward):
    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        if isinstance(mask, AttentionMask):
            mask = dataclasses.replace(mask, query_segments=None, key_segments=None)
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong


@_wrong
def CacheHalfKept(forward):
    """Forgets what it cached before each token."""

    def wrong(self, tokens, *, mask=None, input_pos=None, labels=None):
        if self.caches_are_enabled() and int(input_pos[0]) > 0:
            self.cache.key_0.zero_()
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong
