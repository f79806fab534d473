"""What of NVIDIA Apex is installed, asked without importing it.

Apex is a Python package whose kernels are extensions of their own, built only when asked for: it imports without them,
and fails when a norm is made. So the package is looked for, and then the extension is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

__all__ = ["FAST", "FUSED", "missing"]

FUSED = "fused_layer_norm_cuda"
"""The extension behind `apex.normalization`."""

FAST = "fast_layer_norm"
"""The extension behind `apex.contrib.layer_norm`."""

_SOURCES = {FUSED: "normalization/fused_layer_norm.py", FAST: "contrib/layer_norm/layer_norm.py"}
_KNOWS = {FUSED: "torch.library.custom_op", FAST: "memory_efficient"}
_FLAGS = {FUSED: "APEX_CUDA_EXT=1", FAST: "APEX_FAST_LAYER_NORM=1"}


@cache
def missing(extension: str) -> str | None:
    """Say what of Apex is missing, and what to do about it; `None` when nothing is.

    Args:
        extension: `FUSED` or `FAST`.

    Example:
        >>> missing(FUSED) is None or "Apex" in missing(FUSED)
        True
    """
    if not any(_directories()):
        return "NVIDIA Apex is not installed: no package apex is on the path"
    source = next((file for each in _directories() if (file := each / _SOURCES[extension]).is_file()), None)
    if source is None:
        return (
            f"the package apex that is installed has no {_SOURCES[extension]}: it is another project of that name; "
            f"remove it, and build https://github.com/NVIDIA/apex"
        )
    if _KNOWS[extension] not in source.read_text(encoding="utf-8"):
        return f"NVIDIA Apex is too old: its {_SOURCES[extension]} does not know {_KNOWS[extension]}; build a newer one"
    if not _is_there(extension):
        return f"NVIDIA Apex was built without its extension {extension}: build it again with {_FLAGS[extension]}"
    return _loading_failure(extension)


def _directories() -> Iterator[Path]:
    try:
        spec = find_spec("apex")
    except (ImportError, ValueError):  # a module of that name without a spec
        return
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or ())


def _is_there(extension: str) -> bool:
    try:
        return find_spec(extension) is not None
    except (ImportError, ValueError):
        return False


def _loading_failure(extension: str) -> str | None:
    """Load an extension, which needs no device: one that was built against another torch says so here."""
    try:
        with warnings.catch_warnings():  # of what is the package's own, which are errors to some callers
            warnings.simplefilter("ignore")
            import_module(extension)
    except Exception as error:
        return (
            f"NVIDIA Apex's extension {extension} cannot be loaded: {type(error).__name__}: {error}; build it again "
            f"with the torch that is installed"
        )
    return None
