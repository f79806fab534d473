"""The wheels of core and of the plugins: what is in them, and that they work when installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[2]
PLUGINS = [path.parent for room in ("plugins", "contrib") for path in ROOT.glob(f"{room}/*/pyproject.toml")]
PROJECTS = {"transom": ROOT, **{folder.name: folder for folder in PLUGINS}}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Build every wheel as a release does: an sdist first, and the wheel from it."""
    built = {}
    for name, project in PROJECTS.items():
        out = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (built[name],) = out.glob("*.whl")
    return built


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _sources(project: Path, package: str) -> set[str]:
    """List what a package's folder holds, apart from what Python makes when it runs."""
    folder = project / package
    found = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def _metadata_folder(files: set[str]) -> str:
    (folder,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    return folder


def _distribution(name: str) -> str:
    return "transom" if name == "transom" else f"transom-{name.replace('_', '-')}"


def _entry_points(project: Path) -> dict[str, dict[str, str]]:
    declared: dict[str, dict[str, str]] = tomllib.loads((project / "pyproject.toml").read_text())["project"].get(
        "entry-points", {}
    )
    return declared


def _fills_a_slot(project: Path) -> bool:
    return any(group.startswith("transom.") and group != "transom.hooks" for group in _entry_points(project))


def test_there_are_the_distributions_that_the_design_names():
    assert {"transom", "torch_dot_product", "parallel_linear"} <= set(PROJECTS)


@pytest.mark.parametrize("name", PROJECTS)
def test_wheel_holds_the_package_and_nothing_else(wheels, name):
    package = "core/transom" if name == "transom" else f"src/transom_{name}"
    files = _files(wheels[name])
    metadata = _metadata_folder(files)
    assert {file for file in files if not file.startswith(metadata)} == _sources(PROJECTS[name], package)
    top = Path(package).name
    assert {f"{top}/__init__.py", f"{top}/transom.toml", f"{top}/py.typed"} <= files
    assert {f"{metadata}/licenses/LICENSE", f"{metadata}/METADATA"} <= files
    assert (f"{metadata}/entry_points.txt" in files) == bool(_entry_points(PROJECTS[name]))


def test_core_wheel_holds_the_recipes(wheels):
    recipes = {file for file in _files(wheels["transom"]) if file.startswith("transom/recipes/")}
    assert {"transom/recipes/tiny-llama.yaml", "transom/recipes/tiny-gpt2.yaml"} <= recipes


def test_installed_wheels_list_show_and_plan(wheels, environment):
    environment.install(*wheels.values())
    listing = environment.transom("list", "--json")
    assert (listing.returncode, listing.stderr) == (0, "")
    data = json.loads(listing.stdout)
    ours = str(environment.directory)
    assert all(found["card_file"].startswith(ours) for found in data["implementations"])
    named = {_distribution(name) for name, project in PROJECTS.items() if _fills_a_slot(project)}
    assert {found["distribution"] for found in data["implementations"]} == named
    # The only thing to say about them is that they hide the copies that the tests themselves run from.
    assert {problem["kind"] for problem in data["problems"]} <= {"shadowed"}

    use = ("--use", "core_attention=torch_dot_product", "--use", "linear=parallel_linear")
    planned = environment.transom("plan", "tiny-llama", *use, "--json")
    assert (planned.returncode, planned.stderr) == (0, "")
    chosen = {node["slot"]: node["chosen"] for node in json.loads(planned.stdout)["nodes"]}
    assert chosen["core_attention"] == "transom-torch-dot-product/torch_dot_product"
    assert chosen["column_linear"] == chosen["row_linear"] == "transom-parallel-linear/parallel_linear"
    assert chosen["norm"] == "transom/torch_norm"
