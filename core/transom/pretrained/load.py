"""Models out of folders: of Hugging Face's form, or checkpoints of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from transom.checkpoint.hugging_face.folder import is_hugging_face, open_folder
from transom.checkpoint.model_state import mismatch, model_outlines, put_tensors, tensors_to_put
from transom.checkpoint.store import open_checkpoint
from transom.composition import build
from transom.pretrained.source import open_source
from transom.specs.load import load_spec
from transom.specs.plan import Use, plan
from transom.specs.spec import ModelSpec
from transom.transformer.initialization import leave_uninitialized

__all__ = ["from_pretrained", "load_weights"]


def from_pretrained(
    folder: str | Path,
    *,
    use: Use | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    mode: Literal["train", "infer"] = "infer",
    max_sequence_length: int | None = None,
) -> nn.Module:
    """Build the model that a folder describes, and load its weights straight into it.

    Args:
        folder: as Hugging Face's ``save_pretrained`` writes it; or a run, or one of its checkpoints.
        use: who fills which slot: weights do not depend on who computes with them.
        device: where to build it.
        dtype: of its parameters; `None` = the folder's.
        mode: ``"infer"``: in evaluation mode, without gradients; or ``"train"``.
        max_sequence_length: longest text, in place of the folder's. With learned positions there is a weight for each,
            and no other length fits.

    Returns:
        the model, with its plan as ``model.plan``.

    Raises:
        CheckpointError: the folder is none, holds what cannot be computed exactly, or its weights do not fit; one error
            tells everything that is wrong.
        TransomError: whatever `transom.plan` and `transom.build` raise.
    """
    if not is_hugging_face(folder):
        return _from_checkpoint(folder, use, device, dtype, mode, max_sequence_length)
    opened = open_folder(folder, max_sequence_length=max_sequence_length)
    made = plan(opened.spec, device=device, dtype=dtype, mode=mode, use=use)
    with leave_uninitialized():
        model = build(made, device=device, seed=0)
    put_tensors(tensors_to_put(model, opened.canonical(model_outlines(model))))
    return model


def _from_checkpoint(
    folder: str | Path,
    use: Use | None,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    mode: Literal["train", "infer"],
    length: int | None,
) -> nn.Module:
    opened = open_checkpoint(folder)
    spec = opened.manifest.spec | ({} if length is None else {"max_sequence_length": length})
    made = plan(load_spec(spec).with_origin(str(folder), {}), device=device, dtype=dtype, mode=mode, use=use)
    # A seed of its own leaves the caller's random numbers alone; the few weights it draws are replaced.
    with leave_uninitialized():
        model = build(made, device=device, seed=0)
    if opened.manifest.sizes:  # ranks wrote it, each its part
        from transom.distributed.restore import load_sharded_model

        load_sharded_model(opened, model)
    else:
        opened.fill_model(model)
    return model


def load_weights(model: nn.Module, folder: str | Path) -> ModelSpec:
    """Put the weights that lie in a folder into a model that is built already, as a start for training it.

    What hooks put into the model takes part: adapters that the folder knows nothing of keep what they hold, and weights
    that are kept in fewer bits are rounded.

    Args:
        model: whole, on any device, of any dtype.
        folder: as for `from_pretrained`.

    Returns:
        the spec that the weights were made for, which may compute something else of them than the model does.

    Raises:
        CheckpointError: the folder is none or is damaged, or its weights do not fit; the model is not to be used then.
    """
    source = open_source(folder)
    state = dict(source.tensors)
    state |= {name: state[owner] for name, owner in source.tied.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        problems = [problem for line in str(error).splitlines()[1:] for problem in _problems(line.strip())]
        hint = f"the weights of the same model; transom plan {folder} shows which these are for"
        raise mismatch(str(folder), "the weights are not this model's", problems, hint=hint) from error
    return source.spec


def _problems(line: str) -> list[str]:
    """Say what torch says of a state that does not fit, a line for each tensor."""
    for heading, what in (("Missing key(s)", "is missing"), ("Unexpected key(s)", "has no place in the model")):
        if line.startswith(heading):
            return [f"{name} {what}" for name in re.findall(r'"([^"]+)"', line)]
    found = re.match(r"size mismatch for (\S+): .*Size\((.*)\) from .*Size\((.*)\)", line)
    return [f"{found[1]} has shape {found[2]}; the model's is {found[3]}" if found else line]
