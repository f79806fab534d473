"""Whether an import changes what all code in a process shares, as the conformance kit says it."""

from __future__ import annotations

import pytest
from transom.registry.implementation import Implementation
from transom.registry.registry import Registry
from transom.testing import CaseSkipped, ConformanceError, hygiene
from transom.testing.hygiene import check_import

MODULES = {
    "quiet": "",
    "restless": "import os, sys\nos.environ['MOON'] = 'full'\nsys.setrecursionlimit(2345)\n",
    "loud": "print('hello')",
    "broken": "raise KeyError('moon')",
}


def test_check_import_blames_the_module_that_did_it(site, make_card, monkeypatch):
    names = {name: f"acme_norm.{name}:Norm" for name in MODULES}
    site.install("acme-norm", {"norm": names}, card=make_card(*(f"norm.{name}" for name in MODULES)))
    for name, code in MODULES.items():
        (site.root / "acme_norm" / f"{name}.py").write_text(f"{code}\nfrom acme_norm.parts import Fast as Norm\n")
    registry = Registry()
    monkeypatch.setattr(hygiene, "default_registry", lambda: registry)
    check_import(registry.get("norm", "quiet"))
    said = {
        "restless": r"^importing acme_norm\.restless changes the recursion limit, from \d+ to 2345; "
        "the environment variable MOON, now 'full'$",
        "loud": r"^importing acme_norm\.loud prints 'hello\\n'$",
        "broken": r"(?s)^importing acme_norm\.broken failed: it cannot be imported: KeyError: 'moon'\nTraceback",
    }
    for name, words in said.items():
        with pytest.raises(ConformanceError, match=words):
            check_import(registry.get("norm", name))


def test_check_import_tells_when_the_process_dies(norm):
    with pytest.raises(ConformanceError, match=r"^importing acme_norm\.parts failed: it ended the process with 3"):
        check_import(norm(code="import os\nos._exit(3)"))


def test_check_import_skips_what_a_program_registered():
    registered = Implementation("norm", "fast", "registered", "", "", builder=print)
    with pytest.raises(CaseSkipped, match=r"^it was registered by a running program: there is no module to import$"):
        check_import(registered)


def test_check_import_skips_what_lacks_a_requirement(norm):
    with pytest.raises(CaseSkipped, match=r"^it requires no-such-package>=3, which is not installed$"):
        check_import(norm(requires=["no-such-package>=3"]))
