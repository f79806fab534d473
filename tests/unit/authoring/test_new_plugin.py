"""The files of a new plugin, and what is refused before one is written."""

from __future__ import annotations

import tomllib

import pytest
from transom.authoring.new_plugin import new_plugin
from transom.authoring.plugin_files import STARTING_POINTS
from transom.errors import InputError, OutputError, UnknownSlotError
from transom.slots import SLOTS


def test_new_plugin_can_begin_with_every_slot_of_core():
    assert set(STARTING_POINTS) == set(SLOTS)


@pytest.mark.parametrize("slot", STARTING_POINTS)
def test_new_plugin_declares_features_that_its_slot_has(slot):
    assert set(STARTING_POINTS[slot].features) <= set(SLOTS[slot].features)


@pytest.mark.parametrize("slot", STARTING_POINTS)
def test_new_plugin_has_metadata_that_agree_with_its_card_and_its_code(slot, tmp_path):
    made = new_plugin("Acme.Part", slot, folder=tmp_path / "plugin", author="A. Author")
    metadata = tomllib.loads((made.folder / "pyproject.toml").read_text())
    assert metadata["project"]["name"] == "acme-part"
    assert metadata["project"]["authors"] == [{"name": "A. Author"}]
    assert metadata["project"]["entry-points"] == {f"transom.{slot}": {"acme_part": f"acme_part.{slot}:AcmePart"}}
    code = (made.folder / "src" / "acme_part" / f"{slot}.py").read_text()
    compile(code, slot, "exec")
    assert "\nclass AcmePart(" in code
    card = tomllib.loads((made.folder / "src" / "acme_part" / "transom.toml").read_text())
    assert card[slot]["acme_part"]["api"] == "{}.{}".format(*SLOTS[slot].api)


def test_new_plugin_for_both_linears_has_a_class_for_each(tmp_path):
    made = new_plugin("acme-linear", "linear", folder=tmp_path / "plugin")
    assert made.slots == ("column_linear", "row_linear")
    entry_points = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]["entry-points"]
    assert entry_points == {
        "transom.column_linear": {"acme_linear": "acme_linear.column_linear:AcmeLinearColumn"},
        "transom.row_linear": {"acme_linear": "acme_linear.row_linear:AcmeLinearRow"},
    }


def test_new_plugin_says_which_files_it_wrote(tmp_path):
    made = new_plugin("acme-norm", "norm", folder=tmp_path / "plugin")
    found = {path.relative_to(made.folder) for path in made.folder.rglob("*") if path.is_file()}
    assert found == set(made.files)
    assert (made.folder / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize(("slot", "is_said"), [("core_attention", True), ("norm", False)])
def test_new_plugin_says_in_its_readme_what_a_spec_has_to_say(slot, is_said, tmp_path):
    text = (new_plugin("acme-part", slot, folder=tmp_path / "plugin").folder / "README.md").read_text()
    assert ("write `attention_dropout: 0.0` there" in text) is is_said
    assert "\n\n\n" not in text
    assert "\n```\n\n## Work on it" in text or is_said


@pytest.mark.parametrize("name", ["", "acme norm", "acme--norm", "1norm", "acme/norm", "-norm", "nörm"])
def test_new_plugin_refuses_a_name_that_no_package_can_have(name, tmp_path):
    with pytest.raises(InputError, match="is no name for a package") as raised:
        new_plugin(name, "norm", folder=tmp_path / "plugin")
    assert raised.value.name == name
    assert not (tmp_path / "plugin").exists()


@pytest.mark.parametrize(("name", "what"), [("torch-norm", "norm torch_norm"), ("json", "the Python package json")])
def test_new_plugin_refuses_a_name_that_is_taken(name, what, tmp_path):
    with pytest.raises(InputError, match="is taken here") as raised:
        new_plugin(name, "norm", folder=tmp_path / "plugin")
    assert what in raised.value.taken[0]


def test_new_plugin_refuses_an_unknown_slot_and_guesses(tmp_path):
    with pytest.raises(UnknownSlotError, match="nothing to begin with") as raised:
        new_plugin("acme-norm", "nrom", folder=tmp_path / "plugin")
    assert raised.value.guesses[0] == "norm"


def test_new_plugin_leaves_a_folder_that_exists_alone(tmp_path):
    (tmp_path / "plugin").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        new_plugin("acme-norm", "norm", folder=tmp_path / "plugin")
    assert list((tmp_path / "plugin").iterdir()) == []


def test_new_plugin_refuses_a_parent_that_does_not_exist(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        new_plugin("acme-norm", "norm", folder=tmp_path / "none" / "plugin")
