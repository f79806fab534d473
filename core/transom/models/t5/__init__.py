"""T5: an encoder that reads one sequence and a decoder that writes another (Raffel et al. 2020)."""

from __future__ import annotations

from transom.models.t5.inference_params import InferenceParams
from transom.models.t5.lm_head import T5LMHead
from transom.models.t5.masks import t5_extended_attention_mask, t5_position_ids
from transom.models.t5.t5_model import T5Model
from transom.transformer.packed_seq_params import PackedSeqParams

__all__ = [
    "InferenceParams",
    "PackedSeqParams",
    "T5LMHead",
    "T5Model",
    "t5_extended_attention_mask",
    "t5_position_ids",
]
