"""What importing a plugin does to the process, seen in a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from transom.registry.registry import default_registry
from transom.registry.verdict import unmet_requirements
from transom.testing.case import CaseSkipped, ConformanceError

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["check_import"]

_TIMEOUT = 300  # seconds

_PROGRAM = r"""
import importlib, io, json, locale, logging, os, random, signal, sys, threading, traceback, warnings
import numpy, torch, torch.nn.functional, torch.utils.checkpoint

def digest(value):
    return repr(value)[-4000:]

def look():
    cpu, cuda = torch.get_rng_state(), torch.cuda.is_initialized()
    return {
        "the environment": digest(sorted(os.environ.items())),
        "the working directory": os.getcwd(),
        "the warnings filters": digest(warnings.filters),
        "the showing of warnings": digest(warnings.showwarning),
        "Python's random state": digest(hash(random.getstate())),
        "numpy's random state": digest(numpy.random.get_state()[1].tolist()),
        "torch's random state": digest(hash(cpu.numpy().tobytes())),
        "torch's default dtype": digest(torch.get_default_dtype()),
        "torch's default device": digest(torch.get_default_device()),
        "gradient mode": digest(torch.is_grad_enabled()),
        "deterministic algorithms": digest(torch.are_deterministic_algorithms_enabled()),
        "the precision of float32 products": digest(torch.get_float32_matmul_precision()),
        "the backends' settings": digest((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
                                          torch.backends.cudnn.deterministic)),
        "the number of threads": digest((torch.get_num_threads(), torch.get_num_interop_threads())),
        "CUDA's initialisation": digest(cuda),
        "running threads": digest(sorted(thread.name for thread in threading.enumerate())),
        "the root logger": digest((logging.root.level, logging.root.handlers, logging.root.disabled)),
        "signal handlers": digest([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]),
        "the exception hook": digest(sys.excepthook),
        "the locale": digest(locale.setlocale(locale.LC_ALL)),
        "the recursion limit": digest(sys.getrecursionlimit()),
        "the module search path": digest(sys.path),
        "torch.nn.Module": digest(sorted((name, id(value)) for name, value in vars(torch.nn.Module).items())),
        "torch.nn.functional": digest(hash(tuple(id(value) for value in vars(torch.nn.functional).values()))),
    }

found = {}
out = sys.stdout
sys.path[:0] = json.loads(sys.argv[1])
for name in sys.argv[2:]:
    sys.stdout = sys.stderr = printed = io.StringIO()
    before = look()
    try:
        importlib.import_module(name)
        error = None
    except BaseException:
        error = traceback.format_exc()
    after = look()
    sys.stdout, sys.stderr = out, sys.__stderr__
    changed = [what for what in before if before[what] != after[what]]
    found[name] = {"changed": changed, "printed": printed.getvalue(), "error": error}
print(json.dumps(found))
"""


def check_import(implementation: Implementation) -> None:
    """Import the plugin's module in a fresh process, and compare the process's settings before and after.

    Args:
        implementation: whose module is imported.

    Raises:
        ConformanceError: a setting changed, something was printed, or the import failed.
        CaseSkipped: what it requires is not installed.
    """
    if implementation.builder is not None:
        raise CaseSkipped("it was registered by a running program: there is no module to import")
    card = implementation.card
    unmet = () if card is None else unmet_requirements(card.requires)
    if unmet:
        raise CaseSkipped(f"it requires {', and '.join(complaint for _, complaint in unmet)}")
    found = _import(_modules_of(implementation), tuple(sys.path))[implementation.module]
    if found["error"]:
        raise ConformanceError(f"importing {implementation.module} failed:\n{found['error']}")
    if found["changed"]:
        raise ConformanceError(f"importing {implementation.module} changes {', '.join(found['changed'])}")
    if found["printed"]:
        raise ConformanceError(f"importing {implementation.module} prints {found['printed'][:200]!r}")


def _modules_of(implementation: Implementation) -> tuple[str, ...]:
    """Give the modules of all implementations of a distribution, so that one process serves them all."""
    others = default_registry().implementations()
    modules = {
        other.module
        for other in others
        if other.builder is None
        and other.distribution == implementation.distribution
        and not (other.card and unmet_requirements(other.card.requires))
    }
    return tuple(sorted(modules | {implementation.module}))


@lru_cache(maxsize=64)
def _import(modules: tuple[str, ...], path: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Import modules one after another in a fresh process; give for each what it changed, printed and raised."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(path), *modules],
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise ConformanceError(
            f"the process that imports {', '.join(modules)} ended with {done.returncode}:\n{done.stderr}"
        )
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found
