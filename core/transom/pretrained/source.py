"""Weights of a folder under canonical names, with what belongs to them, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from transom.checkpoint.hugging_face.folder import TOKENIZER, is_hugging_face, open_folder
from transom.checkpoint.hugging_face.settings import CONFIG
from transom.checkpoint.model_state import differences, mismatch, model_outlines, model_tensors
from transom.checkpoint.store import WEIGHTS, Checkpoint, open_checkpoint
from transom.checkpoint.weight_files import WeightFiles
from transom.composition import build
from transom.specs.load import load_spec
from transom.specs.plan import Plan, plan
from transom.specs.spec import ModelSpec
from transom.transformer.initialization import leave_uninitialized

__all__ = ["ORIGINAL", "Source", "open_source", "plan_outlines"]

ORIGINAL = "hugging_face_config.json"
"""What a folder's ``config.json`` is called in a checkpoint made of it."""

_CARRIED = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Source:
    """Weights under canonical names, and what belongs to them.

    Args:
        plan: of the model they are for.
        outlines: shape and dtype of each.
        tensors: each made when it is looked up.
        tied: further names of some.
        carried: files that go along: a tokenizer's and the like.
        original: the ``config.json`` that the spec was once read from.
        tokenizer: ``"bytes"``, or the name of the file that holds it; `None` = there is none.
    """

    plan: Plan
    outlines: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    tied: Mapping[str, str] = field(default_factory=dict)
    carried: Sequence[Path] = ()
    original: Path | None = None
    tokenizer: str | None = None

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.plan.spec


def open_source(
    path: str | Path, *, form: Literal["hf", "transom"] | None = None, max_sequence_length: int | None = None
) -> Source:
    """Open the model in a folder.

    Args:
        path: a folder of Hugging Face's form, or a run or one of its checkpoints.
        form: which of them it is; `None` = as its files tell.
        max_sequence_length: longest text, in place of that of a folder of Hugging Face's form.

    Returns:
        its weights, each read when it is looked up, and what belongs to them.

    Raises:
        CheckpointError: the folder is none, is damaged, or holds what cannot be computed exactly; or its weights are
            not those of its own spec.
    """
    path = Path(path)
    if form == "hf" or (form is None and is_hugging_face(path)):
        return _from_hugging_face(path, max_sequence_length)
    return _from_transom(path)


def _from_hugging_face(path: Path, length: int | None) -> Source:
    opened = open_folder(path, max_sequence_length=length)
    made = plan(opened.spec, mode="infer")
    tensors = opened.canonical(plan_outlines(made))
    return Source(
        plan=made,
        outlines=opened.canonical_outlines(),
        tensors=tensors,
        carried=[path / name for name in _CARRIED if (path / name).is_file()],
        original=path / CONFIG,
        tokenizer=TOKENIZER if (path / TOKENIZER).is_file() else None,
    )


def _from_transom(path: Path) -> Source:
    opened = open_checkpoint(path)
    manifest = opened.manifest
    made = plan(load_spec(manifest.spec).with_origin(str(path), {}), mode="infer")
    stored, tied = _of_ranks(opened, made) if manifest.sizes else (WeightFiles([opened.file(WEIGHTS)]), manifest.tied)
    outlines = {
        name: stored.outline(name) if isinstance(stored, WeightFiles) else stored[name].to("meta") for name in stored
    }
    problems = differences(plan_outlines(made), outlines | {name: outlines[owner] for name, owner in tied.items()})
    if problems:
        what = "the weights are not those that the checkpoint's spec describes"
        raise mismatch(str(opened.folder / WEIGHTS), what, problems)
    original = opened.file(ORIGINAL) if ORIGINAL in manifest.files else None
    carried = [opened.file(name) for name in _CARRIED if name in manifest.files]
    return Source(made, outlines, stored, tied, carried, original, manifest.tokenizer)


def _of_ranks(opened: Checkpoint, made: Plan) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Put together what ranks saved, each its part."""
    from transom.distributed.restore import load_sharded_model

    with leave_uninitialized():
        model = build(made, seed=0)
    load_sharded_model(opened, model)
    return model_tensors(model)


def plan_outlines(made: Plan) -> dict[str, Tensor]:
    """Find the canonical names, shapes and dtypes of a plan's weights, without memory for them."""
    return model_outlines(build(made, device="meta"))
