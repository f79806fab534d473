"""What the registry costs: scanning, importing, listing, planning, and (nothing) in every forward.

Run it by hand: ``python tests/benchmarks/registry_figures.py``. It prints tables in Markdown. Times are those of
the processor, minima of several runs that take turns, so that a busy machine disturbs them little. stevedore is
compared where it is installed (``pip install --group bench``).
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = (100, 500, 2000)
RUNS = 5
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


def make_site(root: Path, size: int) -> None:
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


def run(code: str, site: Path | None = None, *arguments: str) -> str:
    """Run code in a fresh interpreter that sees a directory of distributions first."""
    cache = {} if site is None else {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(site.parent / "cache")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **cache}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def scanning() -> Iterator[tuple[str, ...]]:
    """Time every scanner at every size, in turns; each must find the same entries."""
    yield ("milliseconds", *(f"{size} distributions" for size in SIZES))
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in SIZES} for name in _scanners()}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            make_site(Path(folder) / str(size) / "site", size)
        for _ in range(RUNS):
            for name, size in ((name, size) for size in SIZES for name in times):
                times[name][size].append(_scan_once(name, Path(folder) / str(size) / "site", size))
    for name, by_size in times.items():
        yield (name, *(f"{min(by_size[size]) * 1e3:.1f}" for size in SIZES))


def _scanners() -> Sequence[str]:
    try:
        version("stevedore")
    except ImportError:
        return [name for name in SCANNERS if "stevedore" not in name]
    return list(SCANNERS)


def _scan_once(name: str, site: Path, size: int) -> float:
    before, timed = SCANNERS[name]
    seconds, found = json.loads(run(_TIMED.format(before=before, timed=timed), site).splitlines()[-1])
    assert found == size // 100, (name, found)
    return float(seconds)


def starting() -> Iterator[tuple[str, ...]]:
    """Time what a user waits for first: the processor's time of whole processes."""
    yield ("seconds, a process from start to end", "least of 5")
    commands = {
        "python -c pass": "pass",
        "python -c 'import transom'": "import transom",
        "transom list": "from transom.cli.main import main; main(['list'])",
        "python -c 'import torch'": "import torch",
    }
    for name, code in commands.items():
        yield (name, f"{min(_process_time(code) for _ in range(RUNS)):.3f}")


def _process_time(code: str) -> float:
    before = os.times()
    run(code)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def planning() -> Iterator[tuple[str, ...]]:
    """Time plans of 32 and of 126 layers."""
    import transom

    yield ("plan", "places", "milliseconds, first", "milliseconds, least of 5")
    small = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_query_groups": 8}
    specs = {"32 layers": {"vocab_size": 128_256, "max_sequence_length": 8192, "config": small}}
    for name, spec in {**specs, "126 layers (llama-405b-shape)": "llama-405b-shape"}.items():
        times = []
        for _ in range(RUNS + 1):
            start = time.process_time()
            plan = transom.plan(spec, device="meta")
            times.append((time.process_time() - start) * 1e3)
        yield (name, str(sum(1 for _ in plan.nodes())), f"{times[0]:.0f}", f"{min(times[1:]):.0f}")


def by_hand(node: Any) -> Callable[..., Any]:
    """Compose a plan's classes with nothing but `functools.partial`."""
    builder = node.resolution.chosen.load()
    bound: dict[str, Any] = {}
    if hasattr(builder, "Submodules"):
        parts = {name: list(map(by_hand, p)) if isinstance(p, tuple) else by_hand(p) for name, p in node.parts.items()}
        bound["submodules"] = builder.Submodules(**parts)
    if "request" in inspect.signature(builder).parameters:
        bound["request"] = node.request
    return partial(builder, **bound)


def calling() -> Iterator[tuple[str, ...]]:
    """Count the calls of a forward, and time it, for a built model and for the same classes composed by hand."""
    import torch
    import transom

    torch.set_num_threads(1)
    model = transom.build("tiny-llama", seed=0).eval()
    hand = by_hand(model.plan.root)(model.plan.config).eval()
    hand.load_state_dict(model.state_dict())
    tokens = torch.arange(16).reshape(1, 16)
    models = {"transom.build": model, "composed by hand": hand}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        assert torch.equal(model(tokens), hand(tokens))
        counts = {name: _calls(partial(each, tokens)) for name, each in models.items()}
        for _ in range(300):
            for name, each in models.items():
                start = time.process_time_ns()
                each(tokens)
                times[name].append((time.process_time_ns() - start) / 1e3)
    yield ("one forward of tiny-llama, 16 tokens", "calls", "microseconds, least", "microseconds, median")
    for name in models:
        yield (name, str(counts[name]), f"{min(times[name]):.0f}", f"{statistics.median(times[name]):.0f}")


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


def print_table(rows: Iterator[tuple[str, ...]]) -> None:
    """Print a table in Markdown, its first row as heading."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if number == 0:
            print("|---" + "|--:" * (len(row) - 1) + "|")
    print(flush=True)


def main() -> None:
    """Print everything."""
    names = ["transom", "torch", "importlib-metadata", "pluggy"]
    names += ["stevedore"] if any("stevedore" in name for name in _scanners()) else []
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}\n")
    for table in (scanning, starting, planning, calling):
        print_table(table())


if __name__ == "__main__":
    main()
