"""Folders of Hugging Face's form, made without its libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from safetensors.torch import save_file
from transom.checkpoint.hugging_face.folder import open_folder
from transom.checkpoint.model_state import model_outlines

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
}

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def llama() -> dict[str, Any]:
    """Give the fields of a small Llama's config."""
    return dict(LLAMA)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Give a function that writes a folder: a config, with changes (None = left out), and random weights."""

    def made(name: str = "model", *, config: dict[str, Any] = LLAMA, weights: bool = True, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        settings = {key: value for key, value in (config | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(settings))
        if weights:
            save_file(tensors_of(folder), str(folder / "model.safetensors"))
        return folder

    return made


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Draw weights for a folder's config."""
    opened = open_folder(folder)
    outlines = opened.family.layout(opened.spec).backward(model_outlines(transom.build(opened.spec, device="meta")))
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(outlines[name].shape, generator=generator) for name in outlines}
