"""Specs out of whatever holds one: a file, a recipe, a folder of Hugging Face's form, a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transom.specs.load import load_spec
from transom.specs.spec import ModelSpec

__all__ = ["read_spec"]


def read_spec(source: str | Path | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """Read the spec that a source holds.

    Args:
        source: as for `transom.load_spec`; or a folder: with a ``config.json``, of a run, or a checkpoint.

    Returns:
        the spec; no weights are read.

    Raises:
        SpecError: as `transom.load_spec`.
        CheckpointError: the folder holds no model, or one that cannot be computed exactly.
    """
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return load_spec(source)
    from transom.checkpoint.hugging_face.folder import is_hugging_face, open_folder
    from transom.checkpoint.store import open_checkpoint

    if is_hugging_face(source):
        return open_folder(source).spec
    return load_spec(open_checkpoint(source).manifest.spec).with_origin(str(source), {})
