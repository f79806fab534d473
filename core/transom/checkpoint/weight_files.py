"""Weights in files, mapped into memory: a tensor's bytes are read when somebody looks at them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transom.errors import CheckpointError

__all__ = ["NamedWeights", "WeightFiles", "indexed_files", "open_weights"]

_SAFETENSORS, _TORCH = ".safetensors", (".bin", ".pt", ".pth")
_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@final
class WeightFiles(Mapping[str, Tensor]):
    """The tensors of several files by name; each is a view of its mapped file until it is changed.

    Args:
        paths: the files, of safetensors or of torch.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind, or two hold tensors of one name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self._outlines: dict[str, Tensor] = {}
        for path in self.paths:
            tensors = _safetensors(path) if path.suffix == _SAFETENSORS else _torch_file(path)
            twice = sorted(self._readers.keys() & tensors.keys())
            if twice:
                raise CheckpointError(f"{twice[0]} is in {path} and in another file beside it.", path=path)
            for name, (outline, read) in tensors.items():
                self._outlines[name], self._readers[name] = outline, read

    def outline(self, name: str) -> Tensor:
        """Give a tensor of the same shape and dtype without memory, on the meta device."""
        return self._outlines[name]

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers


@final
class NamedWeights(Mapping[str, Tensor]):
    """Weights under other names than the files have.

    Args:
        files: the weights.
        names: what is found under which name in the files.
    """

    def __init__(self, files: WeightFiles, names: Mapping[str, str]) -> None:
        self._files, self._names = files, dict(names)

    def outlines(self) -> dict[str, Tensor]:
        """Give shape and dtype of each, as tensors on the meta device."""
        return {name: self._files.outline(file_name) for name, file_name in self._names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_weights(path: Path) -> WeightFiles:
    """Open the weights that a file holds, or the files that an index file lists.

    Raises:
        CheckpointError: as `WeightFiles` and `indexed_files`.
    """
    return WeightFiles(indexed_files(path) if path.suffix == ".json" else [path])


def indexed_files(index: Path) -> list[Path]:
    """List the files over which an index spreads the weights, each once.

    Args:
        index: ``model.safetensors.index.json`` or the like, with a ``weight_map`` from names to files beside it.

    Returns:
        the files, which exist.

    Raises:
        CheckpointError: it is damaged, or files that it lists are missing.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error}.", path=index) from error
    # An index names files beside it, and no others.
    wrong = [str(name) for name in names if not isinstance(name, str) or Path(name).name != name]
    missing = [name for name in names if name not in wrong and not (index.parent / name).is_file()]
    if wrong or missing:
        raise CheckpointError(
            f"{index} lists {len(wrong + missing)} files that are not there.",
            failed=(wrong + missing)[:20],
            hint="fetch the whole checkpoint again",
            path=index,
        )
    return [index.parent / name for name in names]


_Entry = tuple[Tensor, Callable[[], Tensor]]


def _safetensors(path: Path) -> dict[str, _Entry]:
    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        return {name: (_outline(file.get_slice(name)), _reader(file, name, path)) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.", hint="fetch it again", path=path) from error
    except KeyError as error:
        what = f"{path} holds numbers of kind {error.args[0]}, which are not read."
        raise CheckpointError(what, hint="floating or whole numbers of 8 to 64 bits", path=path) from error


def _outline(piece: Any) -> Tensor:
    return torch.empty(piece.get_shape(), dtype=_TORCH_DTYPES[piece.get_dtype()], device="meta")


def _reader(file: Any, name: str, path: Path) -> Callable[[], Tensor]:
    def read() -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {name} in {path}: {error}.", path=path) from error
        return tensor

    return read


def _torch_file(path: Path) -> dict[str, _Entry]:
    if path.suffix not in _TORCH:
        raise CheckpointError(
            f"{path} has no ending that says how to read it.", available=(_SAFETENSORS, *_TORCH), path=path
        )
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        hint = "write it anew as safetensors; code in files is never executed"
        raise CheckpointError(f"cannot read {path}: {reason}.", hint=hint, path=path) from error
    tensors = {name: value for name, value in _state_of(state).items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name.", path=path)
    return {name: (tensor.to("meta"), lambda tensor=tensor: tensor) for name, tensor in tensors.items()}  # type: ignore[misc]


def _state_of(loaded: Any) -> Mapping[str, Any]:
    """Find the state dict in what a file holds: the whole of it, or under a usual key."""
    if not isinstance(loaded, Mapping):
        return {}
    if any(isinstance(value, Tensor) for value in loaded.values()):
        return loaded
    nested = (loaded[key] for key in ("model", "state_dict", "module") if isinstance(loaded.get(key), Mapping))
    return _state_of(next(nested, None))
