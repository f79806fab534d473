"""`transom show`."""

from __future__ import annotations

import json
import sys

import pytest
from transom.cli.main import main
from transom.slots import SLOTS

CARD = """
card = 1
[norm.fast]
api = "1.0"
devices = ["cuda"]
dtypes = ["bfloat16", "float16"]
modes = ["infer"]
features = ["rmsnorm"]
requires = ["no-such-package>=3"]
install = "pip install 'acme[fast]'"
min_compute_capability = "8.0"
compiles = true
deprecated = {message = "slower than the new one", replacement = "faster"}
"""

CODE = '''
class Made:
    """A fast norm.

    With a second line.
    """

    def __init__(self, config, hidden_size, eps):
        pass

    def forward(self, x, /):
        return x
'''


def test_show_tells_everything_that_the_data_say(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD, code="raise RuntimeError('imported')")
    assert main(["show", "fast"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fast, for slot norm"
    assert [line[2:] for line in lines[1:] if "transom.toml" not in line] == [
        "distribution    acme-norm 1.0",
        "ask for it as   fast or acme-norm/fast",
        "entry point     acme_norm.parts:Made",
        "slot            LayerNorm or RMSNorm over the last dimension (kernel slot, contract 1.0)",
        "contract        transom show slots/norm",
        "notes           deprecated",
        "                requires: no-such-package>=3, which is not installed (pip install 'acme[fast]')",
        "written for     contract 1.0",
        "devices         cuda, compute capability 8.0 or newer",
        "dtypes          bfloat16, float16",
        "modes           infer",
        "compiles        yes, in one graph",
        "deterministic   not declared",
        "requires        no-such-package>=3",
        "install         pip install 'acme[fast]'",
        "deprecated      slower than the new one; use faster",
        "features        rmsnorm              " + SLOTS["norm"].features["rmsnorm"],
        "lacks           layernorm            " + SLOTS["norm"].features["layernorm"],
        "                zero_centered_gamma  " + SLOTS["norm"].features["zero_centered_gamma"],
    ]


@pytest.mark.parametrize("ref", ["acme-norm/fast", "Acme_Norm/fast", "norm/fast", "norm/acme-norm/fast"])
def test_show_finds_an_implementation_by_every_spelling(install, capsys, ref):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD)
    assert main(["show", ref, "--json"]) == 0
    assert [found["ref"] for found in json.loads(capsys.readouterr().out)] == ["acme-norm/fast"]


def test_show_shows_every_slot_and_distribution_that_knows_the_name(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}, "mlp": {"fast": "Made"}})
    install("other-norm", {"norm": {"fast": "Made"}})
    main(["show", "fast", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {(one["slot"], one["ref"], tuple(one["names"])) for one in found} == {
        ("norm", "acme-norm/fast", ("acme-norm/fast",)),
        ("norm", "other-norm/fast", ("other-norm/fast",)),
        ("mlp", "acme-norm/fast", ("fast", "acme-norm/fast")),
    }


def test_show_takes_linear_for_both_linears(capsys):
    main(["show", "linear/torch_linear", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [one["slot"] for one in found] == ["column_linear", "row_linear"]
    assert [one["contract"]["name"] for one in found] == ["column_linear", "row_linear"]


def test_show_says_when_there_is_no_card(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}})
    main(["show", "fast"])
    assert "card            none: it declares nothing, only its own supports() is asked" in capsys.readouterr().out


def test_show_says_what_is_wrong_with_the_card(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card='card = 1\n[norm.fast]\napi = "one"')
    assert main(["show", "fast"]) == 0
    assert "card            norm.fast.api in the card of acme-norm is wrong" in capsys.readouterr().out


def test_show_of_a_plugins_slot_reads_data_only(install, capsys):
    install("acme-slots", {"slots": {"gate": "Made"}, "gate": {"fast": "Made"}}, code="raise RuntimeError('imported')")
    assert main(["show", "gate/fast"]) == 0
    assert capsys.readouterr().out.startswith("fast, for slot gate\n")


def test_show_prints_the_docstring_when_asked_to_import(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD, code=CODE)
    assert main(["show", "fast", "--import"]) == 0
    assert "  documentation   A fast norm.\n\n                  With a second line.\n" in capsys.readouterr().out
    assert "acme_norm" in sys.modules


def test_show_prints_the_traceback_when_the_import_fails(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, code="raise OSError('libacme.so not found')")
    assert main(["show", "fast", "--import"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("Traceback (most recent call last):\n")
    message = "PluginImportError: norm fast (acme-norm 1.0) cannot be imported: OSError: libacme.so not found"
    assert message in error


@pytest.mark.parametrize(
    ("ref", "sentence", "hint"),
    [
        ("decodr", "no implementation is named 'decodr'.", "decoder?   All: transom list"),
        ("norm/torch_nrm", "no norm is named 'torch_nrm'.", "All: transom list norm"),
        ("acme/dot_product", "no implementation is named 'acme/dot_product'.", "dot_product?"),
    ],
)
def test_show_refuses_a_reference_that_nothing_answers_to(capsys, ref, sentence, hint):
    assert main(["show", ref]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"UnknownImplementationError: {sentence}\n  Asked by:   transom show\n  Available:  ")
    assert "\n  Try:        " in error
    assert hint in error


OPTIONS = """
from dataclasses import dataclass, field
from typing import Annotated
import msgspec

class Fast:
    @dataclass
    class Options:
        \'\'\'What a fast norm may be told.

        Args:
            width: in bits,
                as they are counted.
        \'\'\'

        width: int
        eager: bool | str = False
        others: list[int] = field(default_factory=lambda: [1])

    def __init__(self, config, hidden_size, eps, *, options=None): ...

    def forward(self, x, /): ...
"""


def test_show_says_where_options_are_declared_and_lists_them_when_asked_to_import(install, capsys):
    card = CARD.replace("[norm.fast]", '[norm.fast]\noptions = "acme_norm.parts:Fast.Options"')
    install("acme-norm", {"norm": {"fast": "Fast"}}, card=card, code=OPTIONS)
    assert main(["show", "fast"]) == 0
    assert "  options         acme_norm.parts:Fast.Options; --import lists them\n" in capsys.readouterr().out
    assert "acme_norm" not in sys.modules
    assert main(["show", "fast", "--import"]) == 0
    out = capsys.readouterr().out
    assert "  options         width, integer, required: in bits, as they are counted.\n" in out
    assert "                  eager, boolean or string, default false\n" in out
    assert "                  others, array, may be left out\n" in out
    main(["show", "fast", "--import", "--json"])
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["options"]["required"] == ["width"]


def test_show_lists_options_that_the_card_describes(install, capsys):
    card = CARD + '[norm.fast.options.properties.width]\ntype = "integer"\ndefault = 8\ndescription = "in bits"\n'
    install("acme-norm", {"norm": {"fast": "Made"}}, card=card)
    main(["show", "fast"])
    assert "  options         width, integer, default 8: in bits\n" in capsys.readouterr().out
