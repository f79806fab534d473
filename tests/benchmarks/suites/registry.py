"""What the registry costs: scanning, importing, listing, planning, and (nothing) in every forward.

stevedore is compared where it is installed. The numbers of distributions are those of a directory made for this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transom

from benchmarks.by_hand import by_hand
from benchmarks.settings import Settings
from benchmarks.suites.timing import timed
from benchmarks.table import ONLY, Table

__all__ = ["registry"]

SIZES = (100, 500, 2000)
_TIMED = """
import json, sys, time
{before}
start = time.process_time()
{timed}
print(json.dumps([time.process_time() - start, found]))
"""
SCANNERS = {
    "transom": (
        "from transom.registry.scan import scan",
        "found = len([e for e in scan().group('transom.norm') if e.name.startswith('bench_')])",
    ),
    "importlib.metadata, one group": (
        "from importlib.metadata import entry_points",
        "found = len(entry_points(group='bench.norm'))",
    ),
    "importlib.metadata, 17 groups, one call each": (
        "from importlib.metadata import entry_points",
        "found = [len(entry_points(group='bench.norm')) for _ in range(17)][0]",
    ),
    "pluggy, with imports": (
        "import pluggy; manager = pluggy.PluginManager('bench')",
        "found = manager.load_setuptools_entrypoints('bench.norm')",
    ),
    "stevedore, with imports, no cache yet": (
        "import os, shutil, stevedore; shutil.rmtree(os.environ['XDG_CACHE_HOME'], ignore_errors=True)",
        "found = len(stevedore.ExtensionManager('bench.norm').names())",
    ),
    "stevedore, with imports, cached": (
        "import stevedore; stevedore._cache.Cache().get_group_all('bench.norm')",
        "found = len(stevedore.ExtensionManager('bench.norm').names())",
    ),
}
"""What is run before the clock starts, and what is timed. All read the whole path."""


def _make_site(root: Path, size: int) -> None:
    """Install distributions: every second has scripts, every hundredth fills the slot ``norm``."""
    for number in range(size):
        info = root / f"bench_{number}-1.0.dist-info"
        info.mkdir(parents=True)
        text = "Text of a description.\n" * 40
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-{number}\nVersion: 1.0\n\n{text}")
        (info / "RECORD").write_text("")
        lines = f"[console_scripts]\nbench = bench_{number}:main\n" if number % 2 == 0 else ""
        if number % 100 == 0:
            entry = f"bench_{number} = bench_{number}:Norm\n"
            lines += f"[transom.norm]\n{entry}[bench.norm]\n{entry}"
            (root / f"bench_{number}.py").write_text("class Norm: ...\n")
        if lines:
            (info / "entry_points.txt").write_text(lines)


def _run(code: str, site: Path | None = None, *arguments: str) -> str:
    """Run code in a fresh interpreter that sees a directory of distributions first."""
    cache = {} if site is None else {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(site.parent / "cache")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **cache}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def registry(asked: Settings) -> Iterator[Table]:
    """Measure it part by part."""
    yield _scanning(asked)
    yield _starting(asked)
    yield _planning(asked)
    yield from _calling(asked)


def _scanning(asked: Settings) -> Table:
    """Time every scanner at every size, in turns; each must find the same entries."""
    samples: dict[str, dict[str, list[float]]] = {name: {str(size): [] for size in SIZES} for name in _scanners()}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            _make_site(Path(folder) / str(size) / "site", size)
        for _ in range(asked.rounds):
            for name, size in ((name, size) for size in SIZES for name in samples):
                samples[name][str(size)].append(_scan_once(name, Path(folder) / str(size) / "site", size))
    note = (
        "Time of the processor, in a fresh interpreter each. Every second distribution has scripts, every hundredth "
        "fills a slot."
    )
    return Table(
        name="scan what is installed",
        page="registry",
        unit="s",
        samples=samples,
        axis="distributions",
        note=note,
        taken=asked.described(),
    )


def _scanners() -> Sequence[str]:
    try:
        version("stevedore")
    except ImportError:
        return [name for name in SCANNERS if "stevedore" not in name]
    return list(SCANNERS)


def _scan_once(name: str, site: Path, size: int) -> float:
    before, scan = SCANNERS[name]
    seconds, found = json.loads(_run(_TIMED.format(before=before, timed=scan), site).splitlines()[-1])
    assert found == size // 100, (name, found)
    return float(seconds)


def _starting(asked: Settings) -> Table:
    """Time what a user waits for first."""
    commands = {
        "python -c pass": "pass",
        "python -c 'import transom'": "import transom",
        "transom list": "from transom.cli.main import main; main(['list'])",
        "python -c 'import torch'": "import torch",
    }
    samples: dict[str, dict[str, list[float]]] = {name: {ONLY: []} for name in commands}
    for _ in range(asked.rounds):
        for name, code in commands.items():
            samples[name][ONLY].append(_process_time(code))
    note = "Time of the processor for a process from start to end."
    return Table(name="start", page="registry", unit="s", samples=samples, note=note, taken=asked.described())


def _process_time(code: str) -> float:
    before = os.times()
    _run(code)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _planning(asked: Settings) -> Table:
    small = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_query_groups": 8}
    spec = {"vocab_size": 128_256, "max_sequence_length": 8192, "config": small}
    specs: dict[str, Any] = {"32 layers": spec, "126 layers (llama-405b-shape)": "llama-405b-shape"}
    places = {name: len(list(transom.plan(each, device="meta").nodes())) for name, each in specs.items()}
    steps = {f"{name}, {places[name]} places": partial(_plan, each) for name, each in specs.items()}
    note = "The first plan of a process also imports torch and the chosen classes; it is not among these."
    return timed("plan", "registry", steps, asked, tolerance=0.0, base=None, note=note)


def _plan(spec: Any) -> None:
    transom.plan(spec, device="meta")


def _calling(asked: Settings) -> Iterator[Table]:
    """Count the calls of a forward, and time it, for a built model and for the same classes composed by hand."""
    model: Any = transom.build("tiny-llama", seed=0).eval()
    hand = by_hand(model.plan.root, {})(model.plan.config).eval()
    hand.load_state_dict(model.state_dict())
    models = {"composed by hand": hand, "transom.build": model}
    tokens = torch.arange(16).reshape(1, 16)

    def many(each: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return [each(tokens) for _ in range(20)][-1]

    steps = {name: partial(many, each) for name, each in models.items()}
    with torch.inference_mode():
        counts = {name: {ONLY: [float(_calls(partial(each, tokens)))]} for name, each in models.items()}
    name = "calls of functions in a forward of tiny-llama, 16 tokens"
    yield Table(name=name, page="registry", unit="", samples=counts, base="composed by hand")
    title = "20 forwards of tiny-llama, 16 tokens"
    yield timed(title, "registry", steps, asked, tolerance=0.0, base="composed by hand")


def _calls(action: Callable[[], object]) -> int:
    """Count the calls of Python and C functions."""
    action()
    count = 0

    def note(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count
