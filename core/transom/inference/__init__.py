"""Models at work: sequences that go on, one by one or in batches, token by token or by beams."""

from __future__ import annotations

from transom.inference.beam_search import Beam, beam_search
from transom.inference.generate import Generated, generate, generate_steps, stream
from transom.inference.sampling import Sampling
from transom.inference.settings import BeamSettings, GenerationSettings

__all__ = [
    "Beam",
    "BeamSettings",
    "Generated",
    "GenerationSettings",
    "Sampling",
    "beam_search",
    "generate",
    "generate_steps",
    "stream",
]
