"""A folder with a ``config.json`` and weights, opened: its spec, and its weights under canonical names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from transom.checkpoint.hugging_face.families import family_of
from transom.checkpoint.hugging_face.family import Family
from transom.checkpoint.hugging_face.settings import CONFIG, Settings, read_settings
from transom.checkpoint.model_state import fitted
from transom.checkpoint.weight_files import NamedWeights, WeightFiles, open_weights
from transom.errors import CheckpointError
from transom.specs.load import load_spec
from transom.specs.spec import ModelSpec

__all__ = ["TOKENIZER", "HuggingFaceFolder", "is_hugging_face", "open_folder"]

TOKENIZER = "tokenizer.json"
_SHARED = "share_embeddings_and_output_weights"
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
        return _weights(self.path)

    def canonical(self, outlines: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the weights under canonical names, each made when it is looked up.

        Args:
            outlines: what the model needs, by canonical name: tensors on the meta device.

        Returns:
            a tensor for each.

        Raises:
            CheckpointError: weights are missing, left over or of another shape or kind; it tells them all.
        """
        names, problems = self._names
        return fitted(
            NamedWeights(self.weights, names),
            self.family.layout(self.spec),
            outlines,
            problems=problems,
            source=str(self.path),
            what=f"the weights are not those that {CONFIG} describes",
        )

    def contradicts_ties(self) -> bool:
        """Whether the files hold several values for what the spec says is one weight."""
        return bool(self._names[1])

    def canonical_outlines(self) -> dict[str, Tensor]:
        """Give shape and dtype of what `canonical` gives, as they are in the files."""
        return dict(self.family.layout(self.spec).forward(NamedWeights(self.weights, self._names[0]).outlines()))

    @cached_property
    def _names(self) -> tuple[dict[str, str], list[str]]:
        """What each weight is called in the files; and which tied ones are not alike there."""
        family, ties = self.family, self.family.ties(self.spec)
        known = {name for rule in family.layout(self.spec).expanded() for name in rule.there}
        known |= {name for group in ties for name in group}
        names: dict[str, str] = {}
        for name in self.weights:
            full = family.prefix + name
            if not name.endswith(tuple(family.ignored)):
                names[full if full in known and name not in known else name] = name
        problems: list[str] = []
        for group in ties:
            problems += self._untangle(names, group)
        return names, problems

    def _untangle(self, names: dict[str, str], group: Sequence[str]) -> list[str]:
        """Leave one name of several for one weight, whichever the files have."""
        present = [name for name in group if name in names]
        files = [names.pop(name) for name in present]
        if files:
            names[group[0]] = files[0]
        return [
            f"{name} and {present[0]} are one parameter of the model, and differ"
            for name, file_name in zip(present[1:], files[1:], strict=True)
            if not torch.equal(self.weights[file_name], self.weights[files[0]])
        ]


def is_hugging_face(path: str | Path) -> bool:
    """Whether a path is a folder with a ``config.json``."""
    return (Path(path) / CONFIG).is_file()


def open_folder(path: str | Path, *, max_sequence_length: int | None = None) -> HuggingFaceFolder:
    """Read the config of a folder, and what it means.

    Args:
        path: the folder.
        max_sequence_length: longest text, in place of the config's.

    Returns:
        the folder; its weights are opened when they are asked for.

    Raises:
        CheckpointError: there is no config, or it describes what cannot be computed exactly.
        ConfigError: it describes what cannot be.
    """
    path = Path(path)
    settings = read_settings(path, max_sequence_length=max_sequence_length)
    family = family_of(settings)
    fields = family.to_spec(settings)
    fields["name"] = "".join(c if c.isprintable() else "_" for c in path.resolve().name)[:200] or family.model_type
    if max_sequence_length is not None:
        fields["max_sequence_length"] = max_sequence_length
    for config in {"config", "encoder_config"} & fields.keys():
        fields[config]["params_dtype"] = _dtype(settings, path)

    def opened(**changes: bool) -> HuggingFaceFolder:
        spec = load_spec(fields | changes).with_origin(f"{path / CONFIG}", {})
        return HuggingFaceFolder(path, family, settings, spec)

    if not _has_weights(path) or not (fields[_SHARED] or family.always_ties):
        return opened()
    shared = opened(**{_SHARED: True})
    if not shared.contradicts_ties():
        return shared
    # Two weights that differ are not one, whatever the config says.
    apart = opened(**{_SHARED: False})
    return shared if apart.contradicts_ties() else apart


def _has_weights(path: Path) -> bool:
    return any((path / name).is_file() for name in _WEIGHTS)


def _weights(path: Path) -> WeightFiles:
    for name in _WEIGHTS:
        if (path / name).is_file():
            return open_weights(path / name)
    found = sorted(entry.name for entry in path.iterdir())[:20]
    raise CheckpointError(
        f"no weights in {path}, which holds {', '.join(found)}.", available=_WEIGHTS, hint="fetch them", folder=path
    )


def _dtype(settings: Settings, path: Path) -> str:
    """The dtype that the config names, else that of the weights, if they are there."""
    named = settings.get("dtype", settings.get("torch_dtype"))
    if named is None and _has_weights(path):
        weights = _weights(path)
        dtypes = (weights.outline(name).dtype for name in weights)
        named = next((dtype for dtype in dtypes if dtype.is_floating_point), None)
    return str(named or "float32").removeprefix("torch.")
