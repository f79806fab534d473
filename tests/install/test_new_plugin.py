"""What `transom new` writes, as its author meets it: built, installed and tested, one package for every slot."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from transom.authoring.new_plugin import new_plugin
from transom.authoring.plugin_files import STARTING_POINTS

pytestmark = pytest.mark.install

SLOTS = [*STARTING_POINTS, "linear"]
OPTIONS = ["-q", "-p", "no:cacheprovider"]


def _built(folder) -> str:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return str(wheel)


@pytest.fixture(scope="module")
def tested(module_environment) -> dict[str, dict[str, str]]:
    """Build and install a package for every slot and let one pytest run the tests of all; give the outcomes by slot."""
    folders = {slot: module_environment.work / slot for slot in SLOTS}
    made = [new_plugin(_name(slot), slot, folder=folder) for slot, folder in folders.items()]
    module_environment.install(*(_built(each.folder) for each in made))
    own = [str(each.folder / "tests") for each in made]
    together = ["--rootdir=.", "--import-mode=importlib", "--junitxml=told.xml"]  # the files have one name in all
    done = module_environment.run("-m", "pytest", *OPTIONS, *together, *own)
    assert done.returncode in {0, 1}, done.stdout[-4000:] + done.stderr[-2000:]
    told: dict[str, dict[str, str]] = {slot: {} for slot in SLOTS}
    for case in ElementTree.parse(module_environment.work / "told.xml").iter("testcase"):
        slot = case.attrib["classname"].split(".")[0]
        told[slot][case.attrib["name"]] = " ".join(child.tag for child in case) or "passed"
    return told


def _name(slot: str) -> str:
    return f"acme-{slot.replace('_', '-')}"


@pytest.mark.parametrize("slot", SLOTS)
def test_new_plugin_builds_installs_and_passes_its_own_tests(slot, tested):
    outcomes = tested[slot]
    assert outcomes["test_everything_is_registered"] == "passed"
    assert "passed" in {outcome for name, outcome in outcomes.items() if name.startswith("test_conformance[")}
    assert {name: each for name, each in outcomes.items() if each not in {"passed", "skipped"}} == {}


def test_new_plugin_alone_builds_installs_and_passes_its_own_tests(environment):
    made = new_plugin("acme-norm", "norm", folder=environment.work / "plugin")
    environment.install(_built(made.folder))
    done = environment.run("-m", "pytest", *OPTIONS, str(made.folder / "tests"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_new_plugin_is_listed_and_serves_a_model(environment):
    made = new_plugin("acme-attention", "core_attention", folder=environment.work / "plugin")
    environment.install(_built(made.folder))
    assert "acme_attention" in environment.transom("list", "core_attention").stdout
    done = environment.transom("plan", "tiny-llama", "--use", "core_attention=acme_attention", "--mode", "infer")
    assert (done.returncode, done.stderr) == (0, "")
    assert "acme_attention" in done.stdout


def test_new_plugin_whose_mathematics_is_wrong_fails_its_own_tests(environment):
    made = new_plugin("acme-norm", "norm", folder=environment.work / "plugin")
    source = made.folder / "src" / "acme_norm" / "norm.py"
    source.write_text(source.read_text().replace("+ self.eps", ""))
    environment.install(_built(made.folder))
    done = environment.run("-m", "pytest", *OPTIONS, str(made.folder / "tests"))
    assert done.returncode == 1
    assert "rmsnorm_small" in done.stdout


def test_new_plugin_that_is_not_installed_is_told_how_by_its_own_tests(environment):
    made = new_plugin("acme-norm", "norm", folder=environment.work / "plugin")
    done = environment.run("-m", "pytest", *OPTIONS, str(made.folder / "tests"))
    assert done.returncode == 1
    assert "nothing of acme-norm is registered: not installed? pip install -e ." in done.stdout
