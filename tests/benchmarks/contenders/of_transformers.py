"""Hugging Face transformers as contenders: with SDPA where they have it, and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.contender import Contender, Decoding

__all__ = ["transformers_llama", "transformers_t5"]


def transformers_llama(model: Any, dtype: torch.dtype, device: str) -> Contender:
    """Their Llama; it becomes the contender."""
    model = model.to(device, dtype)

    def logits(ids: Tensor) -> Tensor:
        result: Tensor = model(ids, use_cache=False).logits
        return result

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(ids).float().flatten(0, 1), labels.flatten())

    return Contender(
        name="transformers",
        module=model,
        logits=logits,
        loss=loss,
        decoding=_generating(model, skip_prompt=True),
        compiled_decoding=_generating(model, skip_prompt=True, **_compiled("default")),
        graphed_decoding=_generating(model, skip_prompt=True, **_compiled("reduce-overhead")),
    )


def transformers_t5(model: Any, dtype: torch.dtype, device: str) -> Contender:
    """Their T5; it becomes the contender."""
    model = model.to(device, dtype)
    return Contender(
        name="transformers",
        module=model,
        logits=lambda ids: model.encoder(ids).last_hidden_state,
        decoding=_generating(model),
        compiled_decoding=_generating(model, **_compiled("default")),
    )


def _compiled(mode: str) -> dict[str, Any]:
    """Ask for their static cache, whose step they compile; on CPUs only where they are told so."""
    from transformers import CompileConfig

    config = CompileConfig(mode=mode, fullgraph=True)
    config._compile_all_devices = True  # type: ignore[assignment]
    return {"cache_implementation": "static", "compile_config": config}


def _generating(model: Any, *, skip_prompt: bool = False, **settings: Any) -> Decoding:
    def decoding(prompt: Tensor, count: int) -> Callable[[], Tensor]:
        how = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0, **settings}
        mask = torch.ones_like(prompt)

        def step() -> Tensor:
            model.eval()
            result: Tensor = model.generate(prompt, attention_mask=mask, **how)
            model.train()
            return result[:, prompt.shape[1] if skip_prompt else 1 :]

        return step

    return decoding
