"""What each of several processes does with a small T5."""

from __future__ import annotations

from typing import Any

import model_jobs
import torch
import torch.distributed as dist
import transom
from torch import Tensor
from transom.transformer.partial_gradients import partial_gradients

CONFIG = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "ffn_hidden_size": 24,
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": "gelu_tanh",
    "position_embedding_type": "relative",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method_std": 0.3,
    "params_dtype": "float64",
}
TIED = "share_embeddings_and_output_weights"


def spec(**changes: Any) -> dict[str, Any]:
    """A T5 of two encoder and two decoder layers in float64; ``encoder`` holds changes of the encoder's config."""
    top = {name: changes.pop(name) for name in (TIED, "options", "masks", "train") if name in changes}
    encoder = changes.pop("encoder", None)
    made = {"model": "t5", "vocab_size": 40, "max_sequence_length": 16, "config": CONFIG | changes, **top}
    return made if encoder is None else made | {"encoder_config": CONFIG | changes | encoder}


def batch(rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is read, what of it is no padding, what is written, and labels."""
    generator = torch.Generator().manual_seed(3)
    read, written, labels = (torch.randint(40, (rows, n), generator=generator) for n in (12, 8, 8))
    kept = torch.arange(12) < torch.randint(5, 13, (rows, 1), generator=generator)
    return read, kept, written, labels.masked_fill(torch.rand(rows, 8, generator=generator) < 0.2, -100)


def run_model(described: dict[str, Any], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Compute logits, losses and all gradients in the shapes of one process."""
    model = transom.build(described | {"masks": ["padding"]}, seed=0, tp_group=group)
    read, kept, written, labels = batch()
    logits = model(read, written, kept, None, kept)
    losses = model(read, written, kept, None, kept, lm_labels=labels)
    losses.sum().backward()
    for parameter in partial_gradients(model):
        dist.all_reduce(parameter.grad, group=group)
    return {"logits": logits.detach(), "losses": losses.detach()} | model_jobs.whole_gradients(model)


def on_ranks(changes: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Tensor]:
    described = spec(tensor_model_parallel_size=group.size(), **changes)
    return run_model(described | {"use": model_jobs.PARALLEL}, group)
