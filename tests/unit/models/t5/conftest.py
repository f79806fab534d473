"""Small T5s, and what they read and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transom import TransformerConfig
from transom.models.t5 import T5Model

SMALL = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.fixture
def make_t5() -> Callable[..., T5Model]:
    """Give a function that makes a T5 of named layers; what no config has a field for goes to the constructor."""

    def make(*, seed: int = 0, encoder: dict[str, Any] | None = None, **arguments: Any) -> T5Model:
        fields = {
            name: arguments.pop(name) for name in list(arguments) if name in TransformerConfig.__dataclass_fields__
        }
        config = TransformerConfig(**(SMALL | fields))
        layer = arguments.pop("layer", "transformer_layer")
        torch.manual_seed(seed)
        model = T5Model(
            config,
            config.replace(**encoder) if encoder else config,
            arguments.pop("encoder_layer", layer),
            arguments.pop("decoder_layer", layer),
            arguments.pop("vocab_size", 61),
            arguments.pop("max_sequence_length", 24),
            **arguments,
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    return make


@pytest.fixture
def ids() -> Callable[..., Tensor]:
    """Give a function that draws token ids."""

    def draw(b: int, s: int, seed: int = 0) -> Tensor:
        return torch.randint(61, (b, s), generator=torch.Generator().manual_seed(seed))

    return draw
