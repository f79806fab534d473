"""Whether an implementation can receive what it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from transom.registry.submodules import declared_parts, submodules_complaints, unreceived


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


def test_declared_parts_are_asked_for_with_options_where_they_are_taken():
    class Plain:
        parts = classmethod(lambda cls, request: {"asked": (request,)})

    class Optional:
        parts = classmethod(lambda cls, request, options=None: {"asked": (request, options)})

    assert declared_parts(Neither, 1, 2) == {}
    assert declared_parts(Plain, 1, 2) == {"asked": (1,)}
    assert declared_parts(Optional, 1, 2) == {"asked": (1, 2)}
    assert declared_parts(Optional, 1) == {"asked": (1, None)}


class WithOptions:
    @classmethod
    def parts(cls, request, options=None):
        return {"asked": (cls, request, options)}


class Inheriting(WithOptions):
    @classmethod
    def parts(cls, request):
        return super().parts(request)


def test_declared_parts_hands_options_to_who_takes_them():
    for _ in range(2):
        assert declared_parts(WithOptions, "request", 3) == {"asked": (WithOptions, "request", 3)}
        assert declared_parts(Inheriting, "request", 3) == {"asked": (Inheriting, "request", None)}
        assert declared_parts(OnlySubmodules, "request", 3) == {}
