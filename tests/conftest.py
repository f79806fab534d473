"""Real installed distributions in a directory of their own: package, card, metadata and entry points on disk."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

# What other processes import from here too.
sys.path.insert(0, str(Path(__file__).parent / "processes"))

from forked import Forked

NORM = '''
class Fast:
    """Fits the norm slot."""

    def __init__(self, config, hidden_size, eps):
        self.config, self.hidden_size, self.eps = config, hidden_size, eps

    def forward(self, x, /):
        return x

    __call__ = forward
'''

os.environ["TRANSOM_CONFIG"] = os.devnull  # whoever runs the tests may have a config file of their own


class Site:
    """A site directory into which tests install."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def install(
        self,
        distribution: str,
        points: Mapping[str, Mapping[str, str]] | str | bytes = "",
        *,
        version: str = "1.0",
        code: str | None = NORM,
        card: str | bytes | None = None,
        metadata: str | bytes | None = None,
        kind: str = "dist-info",
    ) -> Path:
        """Install a distribution and return its metadata directory.

        Args:
            distribution: its name; the package is called likewise, with underscores.
            points: entry points by group (without ``transom.``) and name, or the text of the file.
            version: of the distribution.
            code: of the package's module ``parts``; None = no package.
            card: text of transom.toml; None = no card.
            metadata: text of METADATA in place of a good one.
            kind: ``dist-info`` or ``egg-info``.
        """
        package = distribution.replace("-", "_")
        if code is not None:
            (self.root / package).mkdir(exist_ok=True)
            (self.root / package / "__init__.py").write_text("")
            (self.root / package / "parts.py").write_text(code)
        if card is not None:
            _write(self.root / package / "transom.toml", card)
        info = self.root / f"{package}-{version}.{kind}"
        info.mkdir()
        good = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        _write(info / ("METADATA" if kind == "dist-info" else "PKG-INFO"), good if metadata is None else metadata)
        _write(info / "entry_points.txt", points if isinstance(points, str | bytes) else _ini(points, package))
        importlib.invalidate_caches()
        return info

    def run(self, code: str, *arguments: str, **environment: str) -> Any:
        """Run code in a fresh interpreter that sees this directory first; return what it prints last, as JSON."""
        done = self.run_raw(code, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def run_raw(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run code in a fresh interpreter that sees this directory first."""
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self._environment(environment),
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run_with_torch(self, code: str, **environment: str) -> Any:
        """Do what `run` does in an interpreter that has imported torch before it sees this directory."""
        file = self.root.parent / "asked.py"
        file.write_text(code)
        process = Forked(str(file), environment=self._environment(environment), directory=self.root.parent)
        try:
            out, errors = process.communicate(120)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        return json.loads(out.splitlines()[-1])

    def _environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, **changes}


def _ini(points: Mapping[str, Mapping[str, str]], package: str) -> str:
    """Values without a module are attributes of the package's module ``parts``."""
    lines = []
    for group, names in points.items():
        lines.append(f"[transom.{group}]")
        lines += [f"{n} = {v if ':' in v else f'{package}.parts:{v}'}" for n, v in names.items()]
    return "\n".join([*lines, ""])


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory of installed distributions, first on this process's path too."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.root))
    for variable in ("TRANSOM_PLUGINS_ALLOW", "TRANSOM_PLUGINS_DENY", "TRANSOM_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    yield made
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(made.root)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def module_site(tmp_path_factory):
    """A directory of installed distributions for all tests of a module, seen only by the interpreters that it runs."""
    return Site(tmp_path_factory.mktemp("module") / "site")


@pytest.fixture
def make_card():
    """Give a function that writes a card: `make_card("norm.fast", devices=["cuda"])`."""

    def make(*sections: str, **fields: Any) -> str:
        values = {"api": "1.0", "devices": ["any"], "dtypes": ["any"], "modes": ["train", "infer"], **fields}
        body = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None)
        return "\n\n".join(["card = 1", *(f"[{section}]\n{body}" for section in sections)])

    return make
