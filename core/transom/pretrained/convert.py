"""Checkpoints from one form into another, a tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from transom.checkpoint.atomic import new_folder
from transom.checkpoint.hugging_face.export import choose_family, exported_settings
from transom.checkpoint.hugging_face.folder import is_hugging_face
from transom.checkpoint.hugging_face.settings import CONFIG
from transom.checkpoint.layout_map import LayoutMap
from transom.checkpoint.manifest import Manifest
from transom.checkpoint.megatron import megatron_layout, megatron_names
from transom.checkpoint.model_state import fitted, mismatch
from transom.checkpoint.store import save_weights
from transom.checkpoint.torchtune import torchtune_layout
from transom.checkpoint.weight_files import NamedWeights, WeightFiles
from transom.checkpoint.weight_writer import write_shards
from transom.errors import CheckpointError, OutputError
from transom.pretrained.source import ORIGINAL, Source, open_source, plan_outlines
from transom.pretrained.spec import read_spec
from transom.specs.lock import Lock
from transom.specs.plan import plan
from transom.specs.spec import ModelSpec
from transom.transformer.utils import torch_dtype

__all__ = ["SHARD_BYTES", "Converted", "Form", "convert"]

Form = Literal["hf", "transom", "torchtune", "megatron"]
"""Who wrote a checkpoint."""

SHARD_BYTES = 5_000_000_000
"""Most bytes in a file of weights in Hugging Face's form."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Args:
        folder: where.
        form: ``"transom"`` or the ``model_type`` of the family it was written as.
        tensors: how many were written.
        bytes: of all weights.
        files: names of everything in the folder.
        tokenizer: ``"bytes"``, or the name of the file that holds it; `None` = what was written has none.
    """

    folder: Path
    form: str
    tensors: int
    bytes: int
    files: tuple[str, ...]
    tokenizer: str | None


def convert(
    source: str | Path,
    target: str | Path,
    *,
    form: Form | None = None,
    spec: str | Path | Mapping[str, Any] | ModelSpec | None = None,
    to: Literal["hf", "transom"] | None = None,
    dtype: str | None = None,
    max_sequence_length: int | None = None,
    family: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:
    """Write a checkpoint in another form. Weights pass one after another, and are never all in memory.

    Args:
        source: a folder of Hugging Face's form, or a run or one of its checkpoints; of the forms ``torchtune`` and
            ``megatron``, a file with a state dict, or a folder of such files.
        form: what the source is; `None` = ``"hf"`` or ``"transom"``, as its files tell.
        spec: of the model, where the source has none: of the forms ``torchtune`` and ``megatron``.
        target: the folder to write, which must not exist; it appears complete, or not at all.
        to: the form to write; `None` = the other one.
        dtype: of floating weights; `None` = as they are.
        max_sequence_length: longest text, in place of that of a folder of Hugging Face's form.
        family: ``model_type`` to write, to Hugging Face's form; `None` = the first that computes the same.
        shard_bytes: most bytes in a file, in Hugging Face's form.

    Returns:
        what was written.

    Raises:
        CheckpointError: the source is none, holds what cannot be computed exactly, or its weights do not fit; or no
            family can tell what it computes.
        OutputError: the target exists or cannot be written; nothing of it remains.
    """
    target = Path(target)
    if target.exists():
        raise OutputError(f"{target} exists already, and nothing is overwritten.", path=target)
    form = form or ("hf" if is_hugging_face(source) else "transom")
    opened = _open(Path(source), form, spec, max_sequence_length)
    outlines = {name: _cast(outline, dtype) for name, outline in opened.outlines.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    if (to or ("hf" if form == "transom" else "transom")) == "transom":
        kind, written = _to_transom(opened, outlines, target, dtype)
    else:
        kind, written = _to_hugging_face(opened, outlines, target, family, shard_bytes)
    names = tuple(sorted(path.name for path in target.iterdir()))
    size = sum(outline.numel() * outline.dtype.itemsize for outline in written.values())
    # A folder of Hugging Face's form cannot say that its texts are bytes.
    tokenizer = opened.tokenizer if kind == "transom" or opened.tokenizer in names else None
    return Converted(target, kind, len(written), size, names, tokenizer)


def _open(
    path: Path, form: Form, spec: str | Path | Mapping[str, Any] | ModelSpec | None, length: int | None
) -> Source:
    has_own_spec = form in ("hf", "transom")
    if has_own_spec == (spec is not None):
        what = "has a spec of its own, and another is given" if has_own_spec else "has no spec, and none is given"
        raise CheckpointError(
            f"{path} {what}.", asked_by="spec", hint="spec, for torchtune and megatron only", path=path
        )
    if spec is not None:
        return _from_state_dict(path, form, read_spec(spec))
    return open_source(path, form="hf" if form == "hf" else "transom", max_sequence_length=length)


def _from_state_dict(path: Path, form: Form, spec: ModelSpec) -> Source:
    made = plan(spec, mode="infer")
    files = WeightFiles(_files(path))
    wanted = plan_outlines(made)
    names = megatron_names(list(files)) if form == "megatron" else {name: name for name in files}
    layout = megatron_layout(spec, list(wanted), names) if form == "megatron" else torchtune_layout(spec)
    named = NamedWeights(files, names)
    what = f"the weights are not those of {spec.name} as {form} has them"
    tensors = fitted(named, layout, wanted, source=str(path), what=what)
    return Source(made, dict(layout.forward(named.outlines())), tensors)


def _files(path: Path) -> list[Path]:
    """List the files with weights that a path means."""
    if path.is_file():
        return [path]
    for endings in (".safetensors",), (".pt", ".pth", ".bin"):
        found = sorted(each for each in path.glob("*") if each.suffix in endings)
        if found:
            return found
    what = f"no weights in {path}." if path.is_dir() else f"no file {path}."
    raise CheckpointError(what, available=(".safetensors", ".pt", ".pth", ".bin"), path=path)


def _cast(outline: Tensor, dtype: str | None) -> Tensor:
    return outline if dtype is None or not outline.is_floating_point() else outline.to(torch_dtype(dtype))


_Written = tuple[str, Mapping[str, Tensor]]
"""The form of what was written, and the outlines of its weights by the names they got."""


def _to_transom(source: Source, outlines: Mapping[str, Tensor], target: Path, dtype: str | None) -> _Written:
    spec = source.spec.to_dict()
    for name in ("config", "encoder_config"):
        config = getattr(source.spec, name)
        if dtype is not None and config is not None:
            spec[name] = config.replace(params_dtype=dtype, fp16=False, bf16=False).to_dict()
    manifest = Manifest(
        transom=version("transom"),
        torch=version("torch"),
        step=0,
        spec=spec,
        lock=Lock.from_plan(source.plan).to_dict(),
        tokenizer=source.tokenizer,
        tied=dict(source.tied),
    )
    files = {path.name: path for path in source.carried}
    if source.original is not None:
        files[ORIGINAL] = source.original
    save_weights(target, manifest, outlines, source.tensors, files)
    return "transom", outlines


def _to_hugging_face(
    source: Source, outlines: Mapping[str, Tensor], target: Path, name: str | None, shard_bytes: int
) -> _Written:
    original: dict[str, Any] = {} if source.original is None else json.loads(source.original.read_text("utf-8"))
    family = choose_family(source.spec, name, first=original.get("model_type"))
    layout = family.layout(source.spec)
    _check_names(family.model_type, layout, outlines)
    theirs = dict(layout.backward(outlines))
    settings = exported_settings(family, source.spec, dtype=_dtype_of(outlines), original=original)
    with new_folder(target) as partial:
        (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for path in source.carried:
            shutil.copyfile(path, partial / path.name)
        write_shards(partial, "model", theirs, layout.backward(source.tensors), most_bytes=shard_bytes)
    return family.model_type, theirs


def _check_names(form: str, layout: LayoutMap, outlines: Mapping[str, Tensor]) -> None:
    """Refuse weights that the family has no names for, as an MLP of another kind has them."""
    known = {name for rule in layout.expanded() for name in rule.here}
    problems = [f"{name} has no place in a {form} model" for name in outlines.keys() - known]
    problems += [f"{name} is missing" for name in known - outlines.keys()]
    if problems:
        raise mismatch(form, "the model has other weights than the family", problems, hint="to: transom")


def _dtype_of(outlines: Mapping[str, Tensor]) -> str:
    """The dtype that most floating weights have, by torch's name."""
    counts = Counter(outline.dtype for outline in outlines.values() if outline.is_floating_point())
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")
