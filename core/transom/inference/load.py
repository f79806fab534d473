"""Models and tokenizers out of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from transom.checkpoint.store import open_checkpoint
from transom.composition import build
from transom.specs.load import load_spec
from transom.specs.plan import Use, plan
from transom.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["load_checkpoint_tokenizer", "load_model"]


def load_model(
    checkpoint: str | Path,
    *,
    use: Use | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    mode: Literal["train", "infer"] = "infer",
) -> nn.Module:
    """Build the model of a checkpoint from its own spec, and load its weights.

    Args:
        checkpoint: its folder, or that of its run.
        use: who fills which slot, over the spec's own ``use``: a checkpoint does not depend on who computed it.
        device: where to build it.
        dtype: of its parameters; `None` = the spec's.
        mode: ``"infer"``: in evaluation mode, without gradients; or ``"train"``.

    Returns:
        the model, with its plan as ``model.plan``.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights do not fit the model.
        TransomError: whatever `transom.plan` and `transom.build` raise.
    """
    opened = open_checkpoint(checkpoint)
    made = plan(load_spec(opened.manifest.spec), device=device, dtype=dtype, mode=mode, use=use)
    # A seed of its own leaves the caller's random numbers alone; the weights it draws are replaced.
    model = build(made, device=device, seed=0)
    opened.load_model(model)
    return model


def load_checkpoint_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """Load the tokenizer that a checkpoint's model was trained with.

    Args:
        checkpoint: its folder, or that of its run.

    Returns:
        the tokenizer.

    Raises:
        CheckpointError: there is no checkpoint, or its tokenizer's file is missing or damaged.
        DataError: the package that reads it is not installed.
    """
    opened = open_checkpoint(checkpoint)
    name = opened.manifest.tokenizer
    return load_tokenizer(name if name == "bytes" else opened.file(name))
