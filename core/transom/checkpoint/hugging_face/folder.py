"""A folder with a ``config.json`` and weights, opened: its spec, and its weights under canonical names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from transom.checkpoint.hugging_face.families import family_of
from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.settings import CONFIG, Settings, read_settings
from transom.checkpoint.model_state import misfits, mismatch
from transom.checkpoint.weight_files import WeightFiles, open_weights
from transom.errors import CheckpointError
from transom.specs.load import load_spec
from transom.specs.spec import ModelSpec

__all__ = ["TOKENIZER", "HuggingFaceFolder", "is_hugging_face", "open_folder"]

TOKENIZER = "tokenizer.json"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@final
@dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder whose config has been read.

    Args:
        path: where it lies.
        family: what its ``model_type`` means.
        settings: its ``config.json``.
        spec: what it computes.
    """

    path: Path
    family: Family
    settings: Settings
    spec: ModelSpec

    @cached_property
    def weights(self) -> WeightFiles:
        """The weights under their own names, mapped into memory.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        for name in _WEIGHTS:
            if (self.path / name).is_file():
                return open_weights(self.path / name)
        found = sorted(entry.name for entry in self.path.iterdir())
        raise CheckpointError(f"no weights in {self.path}.", available=_WEIGHTS, failed=found[:20], folder=self.path)

    def canonical(self, outlines: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the weights under canonical names, each made when it is looked up.

        Args:
            outlines: what the model needs, by canonical name: tensors on the meta device.

        Returns:
            a tensor for each.

        Raises:
            CheckpointError: weights are missing, left over or of another shape or kind; it tells them all.
        """
        layout = self.family.layout(self.spec)
        wanted = layout.backward(outlines)
        names, problems = self._names(wanted)
        problems += [f"{name} is missing" for name in wanted if name not in names]
        problems += [f"{name} has no place in the model" for name in names if name not in wanted]
        for name in wanted.keys() & names.keys():
            problems += misfits(name, wanted[name], self.weights.outline(names[name]))
        if problems:
            what = f"the weights are not those that {CONFIG} describes"
            raise mismatch(str(self.path), what, problems, hint="fetch the whole checkpoint again")
        return layout.forward(_Renamed(self.weights, names))

    def _names(self, wanted: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
        """Find what each weight is called in the files; and name the tied ones that are not alike there."""
        ties = self.family.ties(self.spec)
        known = {*wanted, *(name for group in ties for name in group)}
        names: dict[str, str] = {}
        for name in self.weights:
            full = self.family.prefix + name
            if not name.endswith(tuple(self.family.ignored)):
                names[full if full in known and name not in known else name] = name
        problems = []
        for owner, *others in ties:
            present = [name for name in (owner, *others) if name in names]
            problems += [
                f"{name} and {present[0]} are one parameter, and differ"
                for name in present[1:]
                if not self._alike(names[name], names[present[0]])
            ]
            if present:
                names[owner] = names[present[0]]
            for other in others:
                names.pop(other, None)
        return names, problems

    def _alike(self, one: str, other: str) -> bool:
        return torch.equal(self.weights[one], self.weights[other])


class _Renamed(Mapping[str, Tensor]):
    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_hugging_face(path: str | Path) -> bool:
    """Whether a path is a folder with a ``config.json``."""
    return (Path(path) / CONFIG).is_file()


def open_folder(path: str | Path) -> HuggingFaceFolder:
    """Read the config of a folder, and what it means.

    Args:
        path: the folder.

    Returns:
        the folder; its weights are opened when they are asked for.

    Raises:
        CheckpointError: there is no config, or it describes what cannot be computed exactly.
        ConfigError: it describes what cannot be.
    """
    path = Path(path)
    settings = read_settings(path)
    family = family_of(settings)
    spec = family.to_spec(settings)
    spec["config"]["params_dtype"] = _dtype(settings)
    settings.check()
    name = "".join(c if c.isprintable() else "_" for c in path.resolve().name)[:200] or family.model_type
    source = f"{path / CONFIG}"
    return HuggingFaceFolder(path, family, settings, load_spec({"name": name} | spec).with_origin(source, {}))


def _dtype(settings: Settings) -> Any:
    name = settings.get("dtype", settings.get("torch_dtype", "float32"))
    return str(name).removeprefix("torch.")
