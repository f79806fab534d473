"""`transom schema`."""

from __future__ import annotations

import json
import tomllib

import jsonschema
import pytest
from transom.cli.main import main
from transom.registry.card import card_schema, find_card
from transom.specs.schema import spec_schema


@pytest.mark.parametrize(("what", "schema"), [("spec", spec_schema), ("card", card_schema)])
def test_schema_prints_the_schema(capsys, what, schema):
    assert main(["schema", what]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema()))


def test_schema_of_cards_accepts_cores_own(capsys):
    main(["schema", "card"])
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    card = tomllib.loads(find_card("transom").read_text())
    jsonschema.validate(card, schema)
    card["norm"]["torch_norm"]["devices"] = "cuda"
    assert not jsonschema.Draft202012Validator(schema).is_valid(card)


def test_schema_of_something_else_is_refused(capsys):
    assert main(["schema", "lock"]) == 2
    assert "'lock' is not one of 'spec', 'card'" in capsys.readouterr().err
