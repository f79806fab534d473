"""The training beside the README."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "tiny_llama.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_tiny_llama_trains_alike_with_every_core_attention(script: dict[str, Any]) -> None:
    losses = script["train"]("torch_dot_product", 4)
    assert losses[-1] < losses[0] - 0.5
    assert script["train"]("dot_product", 4) == pytest.approx(losses, abs=1e-4)


def test_tiny_llama_gives_the_logits_of_their_own_attention(script: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = script["tiny_llama"]("torch_dot_product").eval()
    tokens = torch.randint(256, (2, 17))
    with torch.no_grad():
        found = model(tokens).logits
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(found, model(tokens).logits, atol=1e-5, rtol=1e-4)
