"""Facts as lines behind labels."""

from __future__ import annotations

import pytest
from transom.cli.labelled import labelled, option_lines


def test_labelled_puts_what_follows_the_first_line_below_it():
    assert list(labelled([("a", "one\ntwo"), ("b", ""), ("c", "x")])) == [
        "  a               one",
        "                  two",
        "  b",
        "  c               x",
    ]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({}, ""),
        ({"$ref": "acme:Options"}, "acme:Options; --import lists them"),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, "a, integer, required"),
        ({"properties": {"a": {"type": "integer", "default": 3}}}, "a, integer, default 3"),
        (
            {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
            "a, string or null, may be left out",
        ),
        ({"properties": {"a": {"description": "of all"}}}, "a, any, may be left out: of all"),
    ],
)
def test_option_lines_tell_type_default_and_meaning(schema, text):
    assert option_lines(schema) == text
