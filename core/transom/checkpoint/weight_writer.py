"""Weights written to safetensors files one tensor at a time, so that they never have to be in memory together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

__all__ = ["write_shards", "write_weights"]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def write_weights(path: Path, outlines: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file.

    Args:
        path: the file, new.
        outlines: what will be written: tensors of its shape and dtype, on the meta device.
        tensors: the tensors by the same names, looked up one after another; each is cast to its outline's dtype.

    Raises:
        OSError: it cannot be written.
    """
    # The widest numbers come first, so that none straddles a multiple of its own size.
    names = sorted(outlines, key=lambda name: -outlines[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        outline = outlines[name]
        start, end = end, end + _bytes_of(outline)
        shape = list(outline.shape)
        header[name] = {"dtype": _NAMES[outline.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write(file, tensors[name], outlines[name])


def write_shards(
    folder: Path, stem: str, outlines: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, most_bytes: int
) -> None:
    """Write tensors to ``STEM.safetensors``, or to several files and an index when one would be too large.

    Args:
        folder: where to.
        stem: of the files' names.
        outlines: as for `write_weights`.
        tensors: as for `write_weights`.
        most_bytes: in a file, unless a single tensor has more.

    Raises:
        OSError: a file cannot be written.
    """
    shards = _shards(outlines, most_bytes)
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_weights(folder / name, {key: outlines[key] for key in shard}, tensors)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(_bytes_of(outline) for outline in outlines.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(outlines: Mapping[str, Tensor], most_bytes: int) -> Sequence[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, outline in outlines.items():
        if shards[-1] and size + _bytes_of(outline) > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes_of(outline)
    return shards


def _bytes_of(outline: Tensor) -> int:
    return math.prod(outline.shape) * outline.dtype.itemsize


def _write(file: BinaryIO, tensor: Tensor, outline: Tensor) -> None:
    assert tensor.shape == outline.shape
    plain = tensor.detach().to("cpu", outline.dtype).contiguous()
    file.write(plain.view(-1).view(torch.uint8).numpy().data)
