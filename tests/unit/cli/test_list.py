"""`transom list`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transom.cli import describe
from transom.cli.main import main
from transom.slots import SLOTS

CARD = """
card = 1
[norm.fast]
api = "1.0"
devices = ["cuda", "xpu"]
dtypes = ["bfloat16"]
modes = ["infer"]
features = ["rmsnorm"]
requires = ["no-such-package>=3"]
install = "pip install 'acme[fast]'"
deprecated = {message = "slower than the new one", replacement = "faster"}
"""


def _columns(text: str) -> dict[str, dict[str, str]]:
    """Read a listing back, by its headings' positions; the key is the name."""
    head, *lines = text.splitlines()
    starts = [head.index(word) for word in head.split()]
    spans = list(zip(head.split(), starts, [*starts[1:], None], strict=True))
    rows = [{word: line[start:end].strip() for word, start, end in spans} for line in lines]
    return {row["name"]: row for row in rows}


def test_list_shows_every_slot_with_its_default(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    defaults = {tuple(line.split()[:2]) for line in lines if line.endswith("default")}
    assert defaults == {(slot.name, slot.default) for slot in SLOTS.values() if slot.default is not None}
    assert {name for name, slot in SLOTS.items() if slot.default is None} == {"norm_linear"}


def test_list_shows_what_the_card_declares(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD)
    assert main(["list", "norm"]) == 0
    assert _columns(capsys.readouterr().out)["fast"] == {
        "slot": "norm",
        "name": "fast",
        "distribution": "acme-norm 1.0",
        "devices": "cuda, xpu",
        "dtypes": "bfloat16",
        "features": "1 of 3",
        "notes": "deprecated; requires: no-such-package>=3, which is not installed (pip install 'acme[fast]')",
    }


def test_list_takes_linear_for_both_linears(capsys):
    main(["list", "linear"])
    slots = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert slots == {"column_linear", "row_linear"}


def test_list_says_undeclared_when_there_is_no_card(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}})
    main(["list", "norm"])
    row = _columns(capsys.readouterr().out)["fast"]
    assert (row["devices"], row["dtypes"], row["features"], row["notes"]) == ("?", "?", "?", "undeclared")


def test_list_says_which_card_is_broken_and_lists_the_rest(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card="card = 2")
    assert main(["list", "norm"]) == 0
    table, problems = capsys.readouterr().out.split("\n\nProblems:\n")
    assert _columns(table)["fast"]["notes"] == "its card is broken"
    assert _columns(table)["torch_norm"]["notes"] == "default"
    assert "acme-norm: card in the card of acme-norm is of version 2." in problems


def test_list_asks_for_the_qualified_names_when_two_distributions_share_one(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}})
    install("other-norm", {"norm": {"fast": "Made"}})
    main(["list", "norm"])
    table, problems = capsys.readouterr().out.split("\n\nProblems:\n")
    assert "undeclared; ask for acme-norm/fast" in table
    assert "undeclared; ask for other-norm/fast" in table
    assert "shares its name, use it as other-norm/fast" in problems


def test_list_says_what_the_policy_forbids(install, capsys, monkeypatch):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD)
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "acme-*")
    main(["list", "norm"])
    notes = _columns(capsys.readouterr().out)["fast"]["notes"]
    assert notes.startswith("forbidden: TRANSOM_PLUGINS_DENY has 'acme-*'; deprecated")


def test_list_says_that_the_device_is_missing_and_what_to_do(install, capsys, monkeypatch):
    monkeypatch.setattr(describe, "missing_device", lambda devices: "it runs on cuda, and none is here (get one)")
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD.replace("no-such-package>=3", "click"))
    main(["list", "norm"])
    notes = _columns(capsys.readouterr().out)["fast"]["notes"]
    assert notes.endswith("hardware: it runs on cuda, and none is here (get one)")


def test_list_reports_an_entry_point_for_no_slot(install, capsys):
    install("acme-norm", {"nrom": {"fast": "Made"}})
    main(["list"])
    assert "registers 'fast' for a slot that does not exist, 'nrom'; 'norm' was meant?" in capsys.readouterr().out


def test_list_gives_the_same_as_json(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card=CARD)
    main(["list", "norm", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in data["slots"]] == ["norm"]
    assert data["slots"][0]["features"] == dict(SLOTS["norm"].features)
    fast = next(found for found in data["implementations"] if found["name"] == "fast")
    assert fast["ref"] == "acme-norm/fast"
    assert fast["entry_point"] == "acme_norm.parts:Made"
    assert fast["card"]["requires"] == ["no-such-package>=3"]
    assert fast["unmet"] == ["no-such-package>=3, which is not installed"]
    assert fast["lacks"] == ["layernorm", "zero_centered_gamma"]
    assert not fast["is_default"]


def test_list_gives_problems_as_json(install, capsys):
    install("acme-norm", {"norm": {"fast": "Made"}}, card="[")
    main(["list", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in data["slots"]] == list(SLOTS)
    problem = next(found for found in data["problems"] if found["distribution"] == "acme-norm")
    assert problem["kind"] == "card"
    assert problem["where"].endswith("transom.toml")
    assert "is not TOML" in problem["what"]


def test_list_names_a_slot_that_a_plugin_defines_without_importing_it(install, capsys):
    install("acme-slots", {"slots": {"gate": "Made"}}, code="raise RuntimeError('imported')")
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slots"][-1] == {"name": "gate"}


def test_list_refuses_an_unknown_slot(capsys):
    assert main(["list", "core_atention"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("UnknownSlotError: no slot is named 'core_atention'.\n")
    assert "\n  Try:        core_attention" in error


@pytest.mark.parametrize("columns", ["20", "60"])
def test_list_is_never_folded_when_piped(install, capsys, monkeypatch, columns):
    install("acme-norm", {"norm": {"a_name_of_more_than_twenty_letters": "Made"}}, card=CARD)
    monkeypatch.setenv("COLUMNS", columns)
    main(["list", "norm"])
    assert "a_name_of_more_than_twenty_letters" in _columns(capsys.readouterr().out)


def test_list_imports_neither_torch_nor_a_plugin():
    code = "import sys\nfrom transom.cli.main import main\nmain(['list'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "transom.registry.scan" in loaded
    assert not [name for name in loaded if name.split(".")[0] in ("torch", "numpy") or name.startswith("transom_")]
    assert "transom.transformer" not in loaded


def test_list_gives_hooks_and_bundles_with_their_owner(install, capsys):
    points = "[transom.hooks]\nrank = acme_tune:Rank\n[transom.bundles]\nfast = acme_tune:fast\n"
    install("acme-tune", points, code="raise RuntimeError('imported')")
    main(["list"])
    hooks, bundles = capsys.readouterr().out.split("\n\n")[1:]
    assert hooks.splitlines()[0] == "Hooks, which take effect where a spec names them:"
    assert bundles.splitlines()[0] == "Bundles, which take effect where a spec names them:"
    assert ["rank", "acme-tune", "1.0", "acme_tune:Rank"] in [line.split() for line in hooks.splitlines()]
    assert ["fast", "acme-tune", "1.0", "acme_tune:fast"] in [line.split() for line in bundles.splitlines()]
    main(["list", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert {"acme-tune/rank", "acme-tune/fast"} <= {entry["ref"] for entry in data["hooks"] + data["bundles"]}
    main(["list", "norm"])
    assert "acme-tune" not in capsys.readouterr().out
