"""What ranks saved, put together in one process: for models whose modules keep their weights in another layout."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from transom.checkpoint.model_state import Placement, model_outlines, model_tensors, put_tensors, weights_to_put
from transom.checkpoint.module_layout import HasLayoutMap
from transom.checkpoint.optimizer_state import state_to_put
from transom.distributed.pieces import Piece, PieceLoader

__all__ = ["has_other_layout", "load_whole_model", "load_whole_training"]

_HALF = re.compile(r"(.+)(_w|_v)((?:\.[^.]+)?)")
"""What ranks append to the name of gate and up, which they save apart."""


def has_other_layout(model: nn.Module) -> bool:
    """Whether a module of a model has a ``layout_map()``, by which its weights become canonical.

    Example:
        >>> has_other_layout(nn.Linear(2, 2))
        False
    """
    return any(isinstance(module, HasLayoutMap) for module in model.modules())


def load_whole_model(source: Path, model: nn.Module) -> None:
    """Put the weights that ranks saved into a model, through the canonical layout.

    Args:
        source: the folder of all ranks' tensors.
        model: in one process; beside its own weights, all of them are in memory once more.

    Raises:
        CheckpointError: the weights are another model's; the model is untouched.
    """
    put_tensors(_weights(_Whole(source), model))


def load_whole_training(source: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put weights and the optimizer's state back, likewise.

    Args:
        source: the folder of all ranks' tensors.
        model: in one process.
        optimizer: over its parameters; its state is replaced.

    Raises:
        CheckpointError: weights or state are another model's; nothing was changed.
    """
    whole = _Whole(source)
    names = {name for name in whole.names() if name.rpartition(".")[0] in model_outlines(model)}
    state = state_to_put(model, optimizer, whole.read(names), source=str(source))
    put_tensors(_weights(whole, model))
    optimizer.state.clear()
    optimizer.state.update(state)


def _weights(whole: _Whole, model: nn.Module) -> Iterable[Placement]:
    _, tied = model_tensors(model)
    stored = whole.read(whole.names() & model_outlines(model).keys())
    # Of a parameter with several names, ranks save it under one.
    other = {owner: name for name, owner in tied.items() if owner not in stored}
    same = {name: owner for name, owner in (tied | other).items() if name not in stored}
    return weights_to_put(model, stored, same, source=str(whole.source))


class _Whole:
    """The tensors of all ranks, by canonical names."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.reader = HuggingFaceStorageReader(str(source))
        self.stored: Mapping[str, TensorStorageMetadata]
        self.stored = self.reader.read_metadata().state_dict_metadata  # type: ignore[assignment]
        self.keys: dict[str, list[str]] = {}
        """Of each whole; two of gate and up."""
        for key in sorted(self.stored, reverse=True):  # gate, the first of the two, ends with the later letter
            self.keys.setdefault(self._whole_of(key), []).append(key)

    def names(self) -> set[str]:
        """Give the names of weights, and ``PARAMETER.ENTRY`` of the optimizer's state."""
        return set(self.keys)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read wholes into memory of their own."""
        found = {name: self._empty(name) for name in names}
        pieces: dict[str, Any] = {}
        for name, whole in found.items():
            own = self.keys[name]
            for key, part in zip(own, whole.tensor_split(len(own)), strict=True):
                pieces[key] = Piece(key, tuple(part.shape), part.dtype, (((0,) * part.ndim, part),))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(pieces, storage_reader=self.reader, planner=PieceLoader(flatten_state_dict=False), no_dist=True)
        # Ranks store numbers with an axis.
        return {name: whole.view(()) if name.endswith(".step") else whole for name, whole in found.items()}

    def _empty(self, name: str) -> Tensor:
        first = self.stored[self.keys[name][0]]
        size, *others = first.size
        return torch.empty(size * len(self.keys[name]), *others, dtype=first.properties.dtype)

    def _whole_of(self, key: str) -> str:
        """Name the whole that a key is, or of which it is gate or up; an entry of its state goes with the parameter."""
        match = _HALF.fullmatch(key)
        if match is None:
            return key
        name, _, entry = match.groups()
        is_split = all(f"{name}{half}" in self.stored for half in ("_w", "_v"))
        return f"{name}{entry}" if is_split else key
