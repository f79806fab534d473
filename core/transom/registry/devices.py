"""Which devices this machine lacks, as far as that can be told without importing torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import lru_cache

from transom.registry.scan import installed_version

__all__ = ["missing_device"]


def missing_device(devices: Iterable[str]) -> str | None:
    """Say why the only device that a card names is not here; `None` = one is, or only torch can tell.

    Args:
        devices: torch's names of them, or ``"any"``.

    Returns:
        the reason, and what to do. It is told of CUDA alone: by the build of torch and by NVIDIA's driver.

    Example:
        >>> missing_device(("cpu", "cuda")) is None
        True
    """
    if set(devices) != {"cuda"}:
        return None
    reason = _why_no_cuda(installed_version("torch") or "")
    return None if reason is None else f"it runs on cuda, and {reason}"


@lru_cache
def _why_no_cuda(torch_version: str) -> str | None:
    build = torch_version.partition("+")[2]
    if build == "cpu":
        return f"torch {torch_version} is built without it (install a torch that is built for CUDA)"
    if build.startswith("rocm"):  # which torch calls cuda, too
        return None
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is found (install one, on a machine with such a device)"
    return None
