"""All families that can be read and written, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transom.checkpoint.hugging_face.gemma2 import GEMMA2
from transom.checkpoint.hugging_face.gpt2 import GPT2
from transom.checkpoint.hugging_face.gpt_neox import GPT_NEOX
from transom.checkpoint.hugging_face.llama import LLAMA
from transom.checkpoint.hugging_face.mistral import MISTRAL
from transom.checkpoint.hugging_face.olmo2 import OLMO2
from transom.checkpoint.hugging_face.phi3 import PHI3
from transom.checkpoint.hugging_face.qwen import QWEN2, QWEN3
from transom.checkpoint.hugging_face.t5 import MT5, T5
from transom.errors import CheckpointError

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.family import Family
    from transom.checkpoint.hugging_face.settings import Settings

__all__ = ["FAMILIES", "family_of"]

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, PHI3, OLMO2, GPT2, GPT_NEOX, T5, MT5)
}
"""In the order in which one is looked for that can tell a spec."""


def family_of(settings: Settings) -> Family:
    """Find the family of a ``config.json``.

    Raises:
        CheckpointError: it is none of those there are, has another head than an output layer, or is quantised.
    """
    model_type = settings.get("model_type")
    if model_type not in FAMILIES:
        what = f"no family of models is named {model_type!r}." if model_type else "there is no model_type."
        raise CheckpointError(
            what, asked_by=settings.source, available=sorted(FAMILIES), model_type=model_type, hint="another checkpoint"
        )
    family = FAMILIES[model_type]
    classes = settings.get("architectures", [family.architecture])
    if family.architecture not in classes:
        raise CheckpointError(
            f"the weights are of {', '.join(map(str, classes))}; of {model_type} models {family.architecture} is read.",
            asked_by=settings.source,
            model_type=model_type,
            hint="the checkpoint of the language model",
        )
    if settings.get("quantization_config") is not None:
        settings.problems.append("quantization_config is given: its weights are not numbers that can be read as such")
    return family
