from __future__ import annotations

import sys

import pytest
from transom.errors import DataError
from transom.training.default_corpus import default_text


def test_default_text_is_pythons_help_in_alphabetical_order():
    from pydoc_data.topics import topics

    text = default_text()
    assert len(text) > 300_000
    places = [text.index(topics[name]) for name in ("assert", "booleans", "yield")]
    assert places == sorted(places)
    assert default_text() == text


def test_default_text_says_so_when_python_came_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="this Python came without its help topics") as caught:
        default_text()
    assert "train.data: the path of a text file" in str(caught.value)
