"""Tensors in safetensors files: nothing in them is ever executed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from transom.errors import CheckpointError

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a new file.

    Args:
        path: the file, in a folder that exists.
        tensors: by name; on any device, of any strides.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file({name: _plain(tensor) for name, tensor in tensors.items()}, str(path))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file, into the CPU's memory.

    Args:
        path: the file.

    Returns:
        the tensors by name.

    Raises:
        CheckpointError: no such file, or it is damaged.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.", hint="an older checkpoint", path=path) from error


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    # A view would be refused, since its file would not say what else lies in the memory it looks at.
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
