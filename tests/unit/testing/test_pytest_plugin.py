from __future__ import annotations

import subprocess
import sys

import pytest
import transom.testing.kernels.norm  # noqa: F401 - an inner pytest forgets what it imported first
from transom.registry.registry import Registry

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester, monkeypatch):
    """Give a function that runs pytest in an empty directory, where what the site has installed is known."""
    registry = Registry()
    monkeypatch.setattr("transom.registry.registry.default_registry", lambda: registry)

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly", "-rs", *arguments)

    return run


def test_option_adds_the_cases_of_an_implementation(norm, run):
    norm(devices=["cpu", "cuda"])
    done = run("-v", "--transom-impl", "acme-norm/Fast", "-k", "card or rmsnorm_small")
    assert done.ret == 0
    assert "transom:norm/acme-norm/Fast::card/readable PASSED" in done.stdout.str()
    assert "transom:norm/acme-norm/Fast::agreement/rmsnorm_small[cpu-float32] PASSED" in done.stdout.str()
    assert "it needs cuda, and this machine has none that torch can use" in done.stdout.str()


def test_failing_case_tells_what_it_should_have_shown_without_a_traceback(norm, run):
    norm()
    done = run("--transom-impl", "norm/acme-norm/Slow", "-k", "rmsnorm_small")
    assert done.ret == 1
    said = "acme-norm/Slow should show: eps is added to the variance: inputs whose own is smaller.\noutput: "
    assert said in done.stdout.str()
    assert "Traceback" not in done.stdout.str()


def test_what_the_implementation_raises_has_its_traceback(norm, run):
    code = "class Fast:\n    def __init__(self, config, hidden_size, eps):\n        raise KeyError('moon')\n"
    norm(code=code + "    def forward(self, x, /):\n        return x\n")
    done = run("--transom-impl", "acme-norm/Fast", "-k", "rmsnorm_small")
    assert done.ret == 1
    assert "E       KeyError: 'moon'" in done.stdout.str()


def test_option_may_be_repeated(norm, run):
    norm()
    done = run("--transom-impl", "acme-norm/Fast", "--transom-impl", "Slow", "--collect-only", "-q", "-k", "readable")
    assert [line for line in done.outlines if "::" in line] == [
        "transom:norm/acme-norm/Fast::card/readable",
        "transom:norm/acme-norm/Slow::card/readable",
    ]


def test_unknown_reference_is_a_usage_error(run):
    done = run("--transom-impl", "dot_prodct")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "no implementation is named 'dot_prodct'." in done.stderr.str()
    assert "Asked by:   --transom-impl" in done.stderr.str()
    assert "dot_product?" in done.stderr.str()


def test_plugin_loads_nothing_before_the_option_is_given(tmp_path):
    code = """
import sys
def test_nothing_is_loaded():
    loaded = {name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "transom")}
    assert loaded == {"transom", "transom.testing", "transom.testing.pytest_plugin"}
"""
    (tmp_path / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
