"""torchtune's Llama 3 as a contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.contender import Contender, Decoding, compile_anew
from benchmarks.monolith import Shape

__all__ = ["torchtune"]


def torchtune(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    """Their builder, of the same sizes."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3 import llama3

    model = llama3(
        vocab_size=shape.vocab,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.groups,
        embed_dim=shape.hidden,
        max_seq_len=shape.length,
        intermediate_dim=shape.ffn,
        rope_base=int(shape.base),
        norm_eps=shape.eps,
    )
    converted = hf_to_tune(
        dict(weights), num_heads=shape.heads, num_kv_heads=shape.groups, dim=shape.hidden, head_dim=shape.head_size
    )
    model.load_state_dict(converted)
    model = model.to(device, dtype)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).float().flatten(0, 1), labels.flatten())

    return Contender(
        name="torchtune",
        module=model,
        logits=model,
        loss=loss,
        decoding=_decoding(model, _one_token(model)),
        compiled_decoding=_decoding(model, compile_anew(_one_token(model))),
    )


def _one_token(model: Any) -> Callable[..., Tensor]:
    def one_token(token: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = model(token, mask=mask, input_pos=positions)
        return logits[:, -1:].argmax(-1)

    return one_token


def _decoding(model: Any, one_token: Callable[..., Tensor]) -> Decoding:
    """Decode as their generation recipe does: a causal mask over the cache, positions counted up."""
    from torchtune.modules.common_utils import delete_kv_caches

    whole = _one_token(model)

    def decoding(prompt: Tensor, count: int) -> Callable[[], Tensor]:
        (b, seen), length = prompt.shape, prompt.shape[1] + count
        mask = torch.ones(length, length, dtype=torch.bool, device=prompt.device).tril()[None].expand(b, -1, -1)
        positions = torch.arange(length, device=prompt.device)[None].expand(b, -1)

        @torch.inference_mode()
        def step() -> Tensor:
            with prompt.device:
                model.setup_caches(b, next(model.parameters()).dtype, decoder_max_seq_len=length)
            try:
                tokens = [whole(prompt, mask[:, :seen], positions[:, :seen])]
                for at in range(seen, length - 1):
                    tokens.append(one_token(tokens[-1], mask[:, at : at + 1], positions[:, at : at + 1]))
            finally:
                delete_kv_caches(model)
            return torch.cat(tokens, dim=1)

        return step

    return decoding
