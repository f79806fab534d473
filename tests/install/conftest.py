"""A virtual environment of its own, in which packages are installed and removed with pip; no network is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SCRIPT = "import sys; from transom.cli.main import main; sys.exit(main())"
_BLOCK = re.compile(r"^```\w+\n# (?P<path>[\w./-]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees what this one has installed, and what is installed into it."""

    directory: Path
    work: Path

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the work directory; `settings` are environment variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRANSOM_", "COV", "PYTEST"))}
        return subprocess.run(
            [self.python, *command],
            cwd=self.work,
            env=kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    def transom(self, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run("-c", _SCRIPT, *args, **settings)

    def pip(self, *args: str) -> None:
        """Run this environment's pip on the other one."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *args]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *packages: str | Path) -> None:
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *map(str, packages))

    def uninstall(self, *distributions: str) -> None:
        self.pip("uninstall", "--yes", *distributions)


@pytest.fixture
def environment(tmp_path) -> Environment:
    """Make an environment in which nothing is installed yet but what this one has."""
    return _environment(tmp_path)


@pytest.fixture(scope="module")
def module_environment(tmp_path_factory) -> Environment:
    """Make one for all tests of a module: what one of them installs, the others have."""
    return _environment(tmp_path_factory.mktemp("module"))


def _environment(folder: Path) -> Environment:
    directory = folder / "environment"
    venv.EnvBuilder(with_pip=False).create(directory)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages,) = directory.glob("lib/python*/site-packages")
    # addsitedir, unlike a plain line, also follows the editable installs in there.
    (site_packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    work = folder / "work"
    work.mkdir()
    return Environment(directory, work)


def blocks(page: str) -> Mapping[str, str]:
    """Read the code blocks of a page whose first line says which file they are."""
    return {found["path"]: found["text"] for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))}


@pytest.fixture
def written(tmp_path):
    """Give a function that writes the files that a page shows, and returns the folder they are in."""

    def write(page: str) -> Path:
        folder = tmp_path / "written"
        for path, text in blocks(page).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return folder

    return write
