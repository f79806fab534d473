"""The state of every random number generator a run draws from, as tensors of bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transom.errors import CheckpointError

__all__ = ["random_tensors", "restore_random"]


def random_tensors() -> dict[str, Tensor]:
    """Read the state of torch's, Python's and numpy's global generators.

    Returns:
        uint8 tensors: ``torch``, ``python``, ``numpy``, and ``cuda.0`` ... where CUDA is in use.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "python": _to_bytes(random.getstate()),
        "numpy": _to_bytes([name, np.asarray(keys).tolist(), position, has_gauss, gauss]),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: Mapping[str, Tensor]) -> None:
    """Put the generators back into a state that `random_tensors` gave.

    Args:
        states: the tensors; CUDA devices that this machine does not have are left out.

    Raises:
        CheckpointError: they are damaged.
    """
    try:
        version, numbers, gauss = _from_bytes(states["python"])
        name, keys, position, has_gauss, np_gauss = _from_bytes(states["numpy"])
        torch.set_rng_state(states["torch"])
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, np_gauss))
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{i}"], i)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"the state of the random number generators is damaged: {type(error).__name__}: {error}."
        raise CheckpointError(what, hint="an older checkpoint") from error


def _to_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))
