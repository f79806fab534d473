"""Whether an implementation can receive what it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from transom.registry.submodules import submodules_complaints, unreceived


@dataclass
class Two:
    up: Any
    down: Any = None
    others: list[Any] = field(default_factory=list)


class Neither: ...


class Both:
    Submodules = Two
    parts = classmethod(lambda cls, request: {})


class OnlyParts:
    parts = classmethod(lambda cls, request: {})


class OnlySubmodules:
    Submodules = Two


class NoDataclass:
    Submodules = dict
    parts = classmethod(lambda cls, request: {})


@pytest.mark.parametrize(
    ("builder", "complaints"),
    [
        (Neither, []),
        (Both, []),
        (OnlyParts, ["has `parts` but no dataclass `Submodules` to receive them"]),
        (OnlySubmodules, ["has `Submodules` that require up, but no `parts` that asks for them"]),
        (NoDataclass, ["has `Submodules` that is no dataclass"]),
    ],
)
def test_submodules_complaints_name_what_does_not_go_together(builder, complaints):
    assert list(submodules_complaints(builder)) == complaints


def test_unreceived_names_the_parts_without_a_field():
    assert unreceived(Both, ["up", "gate", "down", "norm"]) == ("gate", "norm")
