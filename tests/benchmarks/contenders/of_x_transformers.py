"""x-transformers' decoder, with the features of a Llama, as a contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.contender import Contender, Decoding
from benchmarks.monolith import Shape

__all__ = ["x_transformers"]


def x_transformers(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    """Their decoder; the bias that their gated MLP always has is zero."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.hidden,
        depth=shape.layers,
        heads=shape.heads,
        attn_kv_heads=shape.groups,
        attn_dim_head=shape.head_size,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=shape.head_size,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=shape.ffn / shape.hidden,
    )
    model = TransformerWrapper(num_tokens=shape.vocab, max_seq_len=shape.length, attn_layers=layers)
    missing, unexpected = model.load_state_dict(_converted(shape, weights), strict=False)
    if unexpected or any(not name.endswith(("proj.bias", "inv_freq")) for name in missing):
        raise ValueError(f"its weights have other names: {missing + unexpected}")
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.zeros_(parameter)
    model = model.to(device, dtype)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).float().flatten(0, 1), labels.flatten())

    return Contender(
        name="x-transformers",
        module=model,
        logits=model,
        loss=loss,
        decoding=_generating(model),
        compiled_decoding=lambda prompt, count: _generating(torch.compile(model))(prompt, count),
    )


def _converted(shape: Shape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reorder weights: rotations pair neighbours, heads of a group are g apart, scales are less one."""
    n, g = shape.heads, shape.groups
    apart = torch.arange(n).view(g, n // g).T.flatten()
    found = {
        "token_emb.emb.weight": weights["model.embed_tokens.weight"],
        "attn_layers.final_norm.g": weights["model.norm.weight"] - 1,
        "to_logits.weight": weights["lm_head.weight"],
    }
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        attention, mlp = f"attn_layers.layers.{2 * i}.", f"attn_layers.layers.{2 * i + 1}."
        out = own["self_attn.o_proj.weight"].view(-1, n, shape.head_size)[:, apart].flatten(1)
        found |= {
            f"{attention}0.0.g": own["input_layernorm.weight"] - 1,
            f"{attention}1.to_q.weight": _neighbours(own["self_attn.q_proj.weight"], n)[apart].flatten(0, 1),
            f"{attention}1.to_k.weight": _neighbours(own["self_attn.k_proj.weight"], g).flatten(0, 1),
            f"{attention}1.to_v.weight": own["self_attn.v_proj.weight"],
            f"{attention}1.to_out.weight": out,
            f"{mlp}0.0.g": own["post_attention_layernorm.weight"] - 1,
            f"{mlp}1.ff.0.proj.weight": torch.cat([own["mlp.up_proj.weight"], own["mlp.gate_proj.weight"]]),
            f"{mlp}1.ff.2.weight": own["mlp.down_proj.weight"],
        }
    return found


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Make neighbours of what is rotated together, half a head apart: ``[k d, h]`` to ``[k, d, h]``."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).flatten(1, 2)


def _generating(model: Any) -> Decoding:
    from x_transformers import AutoregressiveWrapper

    wrapper = AutoregressiveWrapper(model)

    def decoding(prompt: Tensor, count: int) -> Callable[[], Tensor]:
        def step() -> Tensor:
            result: Tensor = wrapper.generate(prompt, count, temperature=0.0, cache_kv=True)
            wrapper.train()
            return result

        return step

    return decoding
