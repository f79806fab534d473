"""Models: core's, and what differs from it."""

from __future__ import annotations

import dataclasses

import torch
from transom import AttentionMask
from transom.models.decoder_assembly import DecoderAssembly
from transom.models.t5.assembly import T5Assembly


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
            for kept in self.cache.entries[0].buffers():
                kept.zero_()
        return forward(self, tokens, mask=mask, input_pos=input_pos, labels=labels)

    return wrong


def _wrong_t5(change):
    """Make an assembly of encoder-decoders of which some methods are others."""

    class Assembly(T5Assembly):
        def __call__(self, config, submodules, *, request, tp_group=None, options=None):
            model = super().__call__(config, submodules, request=request, tp_group=tp_group, options=options)
            kind = type(model)
            model.__class__ = type(kind.__name__, (kind,), change(kind))
            return model

    return Assembly()


T5Right = T5Assembly()


@_wrong_t5
def T5ReadsCausally(kind):
    def encode(self, ids, mask=None):
        ends = range(1, ids.shape[1] + 1)
        masks = [None if mask is None else mask[:, :end] for end in ends]
        states = [kind.encode(self, ids[:, :end], each)[:, -1] for end, each in zip(ends, masks, strict=True)]
        return torch.stack(states, dim=1)

    def forward(self, read, written, reading, *masks, encoder_hidden_states=None, **more):
        hidden = self.encode(read, reading) if encoder_hidden_states is None else encoder_hidden_states
        return kind.forward(self, read, written, None, *masks, encoder_hidden_states=hidden, **more)

    return {"encode": encode, "forward": forward}


@_wrong_t5
def T5SeesPadding(kind):
    def forward(self, read, written, *masks, **more):
        return kind.forward(self, read, written, None, masks[1], None, **more)

    return {"forward": forward}


@_wrong_t5
def T5LooksAhead(kind):
    def forward(self, read, written, reading, writing, between, **more):
        return kind.forward(self, read, written, reading, AttentionMask(), between, **more)

    return {"forward": forward}


@_wrong_t5
def T5ForgetsItsMask(kind):
    def decode(self, ids, hidden=None, *, encoder_decoder_attn_mask=None, **more):
        return kind.decode(self, ids, hidden, **more)

    return {"decode": decode}


@_wrong_t5
def T5LossAveraged(kind):
    def forward(self, *ids_and_masks, lm_labels=None, **more):
        output = kind.forward(self, *ids_and_masks, lm_labels=lm_labels, **more)
        return output if lm_labels is None else output.mean()

    return {"forward": forward}


@_wrong_t5
def T5ForgetsWhatItWrote(kind):
    def decode(self, ids, *args, input_pos=None, **more):
        logits = kind.decode(self, ids, *args, input_pos=input_pos, **more)
        if self.caches_are_enabled() and int(input_pos.min()) > 0:
            self.reset_caches()
        return logits

    return {"decode": decode}
