"""The peak of resident memory in one training step of one contender; run as a process of its own.

It prints, in bytes, the peak over what the process had before there was a model, and over what it had before the step.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from pathlib import Path

from benchmarks.contenders.contender import Contender
from benchmarks.contenders.everybody import llama_makers
from benchmarks.settings import Settings, dtype_of
from benchmarks.workloads import random_ids, training

__all__: list[str] = []

_STATUS = Path("/proc/self/status")
_MARK = Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _peak() -> int:
    return _status("VmHWM") if _STATUS.exists() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> None:
    """Begin anew from what is resident now; where the system cannot, the peak is that of the whole process."""
    try:
        _MARK.write_text("5", encoding="utf-8")
    except OSError:
        return


def _made(name: str, settings: Settings, dtype: str) -> Contender:
    return llama_makers(settings.shape, dtype_of(dtype), "cpu")[name]()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("dtype")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    settings = Settings(small=asked.small)
    # A tiny model, made and dropped, has the libraries imported before anything is counted.
    _made(asked.contender, Settings(small=True), asked.dtype)
    gc.collect()
    before = _status("VmRSS")
    contender = _made(asked.contender, settings, asked.dtype)
    gc.collect()
    step = training(contender, random_ids(settings.shape.vocab, 2, min(512, settings.shape.length)))
    step()
    gc.collect()
    between = _status("VmRSS")
    _forget_peak()
    step()
    peak = _peak()
    print(json.dumps([peak - before, peak - between]))


if __name__ == "__main__":
    main()
