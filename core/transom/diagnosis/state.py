"""The state that all code in a process shares, looked at before and after an import."""

from __future__ import annotations

import gc
import hashlib
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["changes", "look"]

Look = Mapping[str, Mapping[str, str]]
"""Values as text, by family and name."""

_PATCHABLE = ("torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.cuda")
_CLASSES = (("torch", "Tensor"), ("torch.nn", "Module"))
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGALRM")


def look() -> Look:
    """Look at the state; torch and numpy are looked at where they are imported already."""
    found = {
        "setting": _python(),
        "environment variable": dict(os.environ),
        "warnings filter": {repr(each): "set" for each in warnings.filters},
        "signal handler": {name: repr(signal.getsignal(getattr(signal, name))) for name in _signals()},
        "thread": {thread.name: "running" for thread in threading.enumerate()},
    }
    if "numpy" in sys.modules:
        state = sys.modules["numpy"].random.get_state()
        found["setting"]["numpy's random state"] = _digest(repr((state[0], state[1].tobytes(), *state[2:])))
        found["setting"]["numpy's handling of errors"] = repr(sys.modules["numpy"].geterr())
    if "torch" in sys.modules:
        found["setting"] |= _torch(sys.modules["torch"])
        found["function of torch"] = dict(_functions())
    return MappingProxyType(found)


def changes(before: Look, after: Look) -> tuple[str, ...]:
    """Say what differs, a phrase each: ``"the default dtype of torch, from torch.float32 to torch.float64"``."""
    return tuple(
        phrase for family, now in after.items() for phrase in _differences(family, before.get(family, now), now)
    )


def _differences(family: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        subject = f"the {name}" if family == "setting" else f"the {family} {name}"
        if family == "function of torch":
            if old is not None:  # what is new replaces nothing
                yield f"{subject}, which is another one now"
        elif new is None:
            yield f"{subject}, which is gone"
        elif old is None:
            yield f"{subject}, which is new" if new in ("set", "running") else f"{subject}, now {new!r}"
        elif new.startswith("sha256:"):
            yield subject
        else:
            yield f"{subject}, from {old} to {new}"


def _python() -> dict[str, str]:
    return {
        "random state of Python": _digest(repr(random.getstate())),
        "working directory": os.getcwd(),  # noqa: PTH109 - as text
        "module search path": repr(sys.path),
        "exception hook": repr(sys.excepthook),
        "import hooks": repr([type(each) if not isinstance(each, type) else each for each in sys.meta_path]),
        "recursion limit": repr(sys.getrecursionlimit()),
        "showing of warnings": repr(warnings.showwarning),
        "level of the root logger": logging.getLevelName(logging.root.level),
        "handlers of the root logger": repr([type(handler).__name__ for handler in logging.root.handlers]),
        "switch that disables logging": repr(logging.root.manager.disable),
        "garbage collector": repr((gc.isenabled(), gc.get_threshold())),
        "time limit of sockets": repr(socket.getdefaulttimeout()),
        "locale": locale.setlocale(locale.LC_ALL),
        "profiler of Python": repr(sys.getprofile()),
        "tracer of Python": repr(sys.gettrace()),
    }


def _torch(torch: Any) -> dict[str, str]:
    backends = torch.backends
    return {
        "default dtype of torch": repr(torch.get_default_dtype()),
        "default device of torch": repr(torch.get_default_device()),
        "random state of torch": _digest(torch.get_rng_state().numpy().tobytes()),
        "gradient mode of torch": repr(torch.is_grad_enabled()),
        "deterministic algorithms of torch": repr(torch.are_deterministic_algorithms_enabled()),
        "number of threads of torch": repr(torch.get_num_threads()),
        "number of interop threads of torch": repr(torch.get_num_interop_threads()),
        "precision of float32 products in torch": torch.get_float32_matmul_precision(),
        "cuDNN settings of torch": repr(
            (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic)
        ),
        "attention backends of torch": repr(
            (
                backends.cuda.flash_sdp_enabled(),
                backends.cuda.mem_efficient_sdp_enabled(),
                backends.cuda.math_sdp_enabled(),
            )
        ),
        "anomaly detection of torch": repr(torch.is_anomaly_enabled()),
        "CUDA initialisation": repr(torch.cuda.is_initialized()),
        "flush of denormals in torch": repr((torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 1).item() == 0),
    }


def _functions() -> Iterator[tuple[str, str]]:
    """Yield every function and class of torch that a plugin could have replaced, by its identity."""
    owners = [(name, sys.modules[name]) for name in _PATCHABLE if name in sys.modules]
    owners += [(f"{module}.{name}", getattr(sys.modules[module], name)) for module, name in _CLASSES]
    for prefix, owner in owners:
        for name, value in vars(owner).items():
            if callable(value) and not name.startswith("__") and name != "Storage":  # an alias for the default dtype
                yield f"{prefix}.{name}", str(id(value))


def _signals() -> list[str]:
    return [name for name in _SIGNALS if hasattr(signal, name)]


def _digest(value: str | bytes) -> str:
    data = value if isinstance(value, bytes) else value.encode()
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
