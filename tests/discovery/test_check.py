"""`transom check DIST`: what is wrong with a distribution, and where."""

from __future__ import annotations

import json

import pytest

MAIN = "import sys; from transom.cli.main import main; sys.exit(main())"
FAST = "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n    def forward(self, x, /): ...\n"
HEAD = "card = 1\n"
SECTION = '[{slot}.{name}]\napi = "1.0"\ndevices = ["any"]\ndtypes = ["any"]\nmodes = ["infer"]\n{more}\n'

MUTATIONS = {
    "dtype": (
        "import torch; torch.set_default_dtype(torch.float64)",
        "the default dtype of torch, from torch.float32 to torch.float64",
    ),
    "device": ("import torch; torch.set_default_device('meta')", "the default device of torch, from"),
    "seed": ("import torch; torch.manual_seed(7)", "the random state of torch"),
    "draw": ("import torch; torch.rand(1, device='cpu')", "the random state of torch"),
    "python_seed": ("import random; random.seed(7)", "the random state of Python"),
    "numpy_seed": ("import numpy; numpy.random.seed(7)", "the numpy's random state"),
    "warnings": (
        "import warnings; warnings.filterwarnings('ignore', 'beware')",
        "the warnings filter ('ignore', re.compile('beware', re.IGNORECASE), <class 'Warning'>, None, 0), which is new",
    ),
    "variable": (
        "import os; os.environ['TOKENIZERS_PARALLELISM'] = 'false'",
        "the environment variable TOKENIZERS_PARALLELISM, now 'false'",
    ),
    "path": ("import sys; sys.path.insert(0, '/nowhere')", "the module search path, from"),
    "threads": ("import torch; torch.set_num_threads(torch.get_num_threads() + 1)", "the number of threads of torch, "),
    "deterministic": (
        "import torch; torch.use_deterministic_algorithms(True)",
        "the deterministic algorithms of torch, from False to True",
    ),
    "gradients": ("import torch; torch.set_grad_enabled(False)", "the gradient mode of torch, from True to False"),
    "precision": (
        "import torch; torch.set_float32_matmul_precision('medium')",
        "the precision of float32 products in torch, from highest to medium",
    ),
    "patch": (
        "import torch.nn.functional as F\nF.silu = lambda x: x",
        "the function of torch torch.nn.functional.silu, which is another one now",
    ),
    "method": (
        "import torch\nold = torch.nn.Module.to\ntorch.nn.Module.to = lambda *a, **k: old(*a, **k)",
        "the function of torch torch.nn.Module.to, which is another one now",
    ),
    "logging": ("import logging; logging.basicConfig(level='DEBUG')", "the level of the root logger, from WARNING to"),
    "signals": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "the signal handler SIGTERM, from <Handlers.SIG_DFL: 0> to <Handlers.SIG_IGN: 1>",
    ),
    "thread": (
        "import threading; threading.Thread(target=threading.Event().wait, name='watcher', daemon=True).start()",
        "the thread watcher, which is new",
    ),
    "hook": ("import sys; sys.excepthook = print", "the exception hook, from"),
    "recursion": ("import sys; sys.setrecursionlimit(5000)", "the recursion limit, from 1000 to 5000"),
    "cuda": ("import torch; torch.cuda.is_initialized = lambda: True", "the CUDA initialisation, from False to True"),
}
"""Each alone in a module, with what is said of it. The last stands for `torch.cuda.init()`, which needs a device."""


def _check(site, name: str, *options: str, code: int = 1) -> dict:
    done = site.run_raw(MAIN, "check", name, "--json", "--timeout", "30", *options)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def _card(*names: str, more: str = "", slot: str = "norm") -> str:
    return HEAD + "".join(SECTION.format(slot=slot, name=name, more=more) for name in names)


@pytest.fixture(scope="module")
def mutated(module_site):
    """What is said of a distribution whose modules each change something when they are imported."""
    points = {"norm": {name: f"acme_mutant.{name}:Fast" for name in MUTATIONS} | {"tidy": "acme_mutant.tidy:Fast"}}
    metadata = "Metadata-Version: 2.1\nName: acme-mutant\nVersion: 1.0\nRequires-Dist: transom\n"
    module_site.install("acme-mutant", points, card=_card(*MUTATIONS, "tidy"), metadata=metadata)
    for name, (code, _) in {**MUTATIONS, "tidy": ("", "")}.items():
        (module_site.root / "acme_mutant" / f"{name}.py").write_text(f"{code}\n\n{FAST}")
    found: dict[str, list[str]] = {}
    for finding in _check(module_site, "acme-mutant")["findings"]:
        found.setdefault(finding["where"].rpartition(" ")[2], []).append(finding["what"])
    return found


@pytest.mark.parametrize("name", MUTATIONS)
def test_check_names_the_module_that_changes_what_all_code_shares(mutated, name):
    said = mutated[name]
    assert any(what.startswith(f"importing acme_mutant.{name} changes {MUTATIONS[name][1]}") for what in said), said
    others = ["logging", "cuda"]  # a handler is added too, and a function replaced
    assert len(said) == 1 or name in others, said


def test_check_says_nothing_of_a_module_that_changes_nothing(mutated):
    assert "tidy" not in mutated


def test_check_of_what_is_well_ends_with_zero(site):
    metadata = "Metadata-Version: 2.1\nName: acme-good\nVersion: 1.0\nRequires-Dist: transom>=0.1\n"
    site.install("acme-good", {"norm": {"good": "Fast"}}, card=_card("good"), code=FAST, metadata=metadata)
    assert _check(site, "acme-good", code=0) == {"distribution": "acme-good", "findings": [], "reports": []}
    done = site.run_raw(MAIN, "check", "Acme-Good")
    assert (done.returncode, done.stdout) == (0, "\nAcme-Good: Nothing is wrong.\n")


OBJECTS = """
from dataclasses import dataclass

class Base:
    def __init__(self, config, hidden_size, eps): ...
    def forward(self, x, /): ...

class Width:
    def __init__(self, config, width, eps): ...
    def forward(self, x, scale): ...

class Supports(Base):
    def supports(self, request): ...

class Constant(Base):
    supports = ["always"]

class Parts(Base):
    @classmethod
    def parts(cls, request): ...

class Loose(Base):
    Submodules = dict

@dataclass
class Needs:
    inner: object

class Unasked(Base):
    Submodules = Needs

class Options(Base):
    class Options: ...

    def __init__(self, config, hidden_size, eps, options=None): ...

class Promised(Base): ...

class Other(Base):
    Options = Needs

    def __init__(self, config, hidden_size, eps, options=None): ...
"""

COMPLAINTS = {
    "gone": ["it cannot be imported: AttributeError: module 'acme_objects.parts' has no attribute 'Gone'"],
    "width": [
        "does not accept `hidden_size`",
        "requires `width`, which callers do not pass",
        "makes a module whose forward requires `scale`, which callers do not pass",
    ],
    "supports": ["has `supports` that cannot be called with a request alone: it should be a class method"],
    "constant": ["has `supports` of type list, which cannot be called"],
    "parts": ["has `parts` but no dataclass `Submodules` to receive them"],
    "loose": ["has `Submodules` that is no dataclass"],
    "unasked": ["has `Submodules` that require inner, but no `parts` that asks for them"],
    "options": ["has `Options` that is neither a dataclass nor a msgspec.Struct"],
    "promised": ["has no `Options`, which its card promises"],
    "other": ["has other `Options` than its card refers to, acme_objects.parts:Base"],
}


def test_check_says_what_is_wrong_with_each_imported_object(site):
    metadata = "Metadata-Version: 2.1\nName: acme-objects\nVersion: 1.0\nRequires-Dist: transom\n"
    plain = _card(*(name for name in COMPLAINTS if name not in ("promised", "other")))
    promising = _card("promised", "other", more='options = "acme_objects.parts:Base"').removeprefix(HEAD)
    points = {"norm": {name: name.title() for name in COMPLAINTS}}
    site.install("acme-objects", points, card=plain + promising, code=OBJECTS, metadata=metadata)
    found: dict[str, list[str]] = {name: [] for name in COMPLAINTS}
    for finding in _check(site, "acme-objects")["findings"]:
        name = finding["where"].removeprefix("[transom.norm] ")
        found[name].append(finding["what"].removeprefix(f"acme_objects.parts:{name.title()} "))
    assert found == COMPLAINTS


def test_check_compares_metadata_card_and_entry_points(site):
    metadata = "Metadata-Version: 2.1\nName: acme-paper\nVersion: 1.0\nRequires-Dist: transom>=99\nRequires-Dist: !\n"
    points = "[transom.norm]\npaper = acme_paper.parts:Fast\nstray = acme_paper.parts:Fast\n"
    points += "[transom.bundles]\nbig = acme_paper:big\n"
    more = 'features = ["rmsnrom"]\nrequires = ["gone>=1"]\ninstall = "pip install gone"\n'
    more += 'deprecated = {message = "old", replacement = "newer"}'
    card = _card("paper", more=more) + SECTION.format(slot="norm", name="absent", more="")
    site.install("acme-paper", points, card=card, code=FAST, metadata=metadata)
    said = [(f["level"], f["what"], f["hint"]) for f in _check(site, "acme-paper")["findings"]]
    assert said == [
        ("wrong", "has no section [norm.stray], which the entry point promises", None),
        ("wrong", "has a section [norm.absent], for which there is no entry point", None),
        (
            "wrong",
            "[norm.paper] declares 'rmsnrom', which is no feature of norm; 'rmsnorm' was meant?",
            None,
        ),
        ("wrong", "requires transom>=99, but 0.1.0 is installed", "upgrade acme-paper or transom"),
        ("wrong", "requires '!', which is no requirement", None),
        ("note", "requires gone>=1, which is not installed", "pip install gone"),
        ("note", "names a replacement that is not here: no norm is named 'newer'", None),
        (
            "wrong",
            "bundle 'big' of acme-paper has no file big.toml in package acme_paper",
            "reinstall acme-paper, or report it to its authors",
        ),
    ]


def test_check_of_what_has_no_card_and_prints_says_both(site):
    site.install("acme-loud", {"norm": {"loud": "Fast"}}, code=FAST + "print('hello\\nworld')\n")
    findings = _check(site, "acme-loud")["findings"]
    assert [(f["level"], f["what"]) for f in findings] == [
        ("note", "does not say which transom it was written for"),
        ("wrong", "declares nothing: there is no card beside acme_loud/__init__.py"),
        ("wrong", "importing acme_loud.parts prints 'hello'"),
    ]
    assert findings[1]["hint"] == "transom.toml with a section [norm.loud]; see transom schema card"


def test_check_of_a_card_that_cannot_be_read_prints_where(site):
    site.install("acme-bad", {"norm": {"bad": "Fast"}}, code=FAST, card="card = 1\n[norm.bad]\ncolour = 1\n")
    done = site.run_raw(MAIN, "check", "acme-bad")
    assert done.returncode == 1
    assert (
        "  acme-bad: norm.bad in the card of acme-bad is wrong: Object contains unknown field `colour`" in done.stdout
    )
    assert f"({site.root / 'acme_bad' / 'transom.toml'})" in done.stdout
    assert done.stdout.endswith("\nacme-bad: 1 thing is wrong; 1 note.\n")
