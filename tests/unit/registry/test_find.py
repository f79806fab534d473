from __future__ import annotations

import pytest
from transom.errors import UnknownImplementationError
from transom.registry.find import find
from transom.registry.registry import Registry


@pytest.fixture
def registry(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}, "loss": {"fast": "Fast"}})
    site.install("other-norm", {"norm": {"fast": "Fast"}})
    return Registry()


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("torch_norm", ["norm transom/torch_norm"]),
        ("fast", ["norm acme-norm/fast", "norm other-norm/fast", "loss acme-norm/fast"]),
        ("norm/fast", ["norm acme-norm/fast", "norm other-norm/fast"]),
        ("Acme_Norm/fast", ["norm acme-norm/fast", "loss acme-norm/fast"]),
        ("norm/acme-norm/fast", ["norm acme-norm/fast"]),
        ("linear/torch_linear", ["column_linear transom/torch_linear", "row_linear transom/torch_linear"]),
    ],
)
def test_find_gives_every_match(registry, ref, found):
    assert [f"{each.slot} {each.ref}" for each in find(registry, ref, asked_by="a test")] == found


@pytest.mark.parametrize(
    ("ref", "what", "hint"),
    [
        ("fats", "no implementation is named 'fats'.", "fast?   All: transom list"),
        ("norm/moon", "no norm is named 'moon'.", "All: transom list norm"),
        ("norm", "no implementation is named 'norm'.", "norm is a slot: transom list norm"),
    ],
    ids=["near", "slot", "a slot itself"],
)
def test_find_refuses_an_unknown_name_with_a_hint(registry, ref, what, hint):
    with pytest.raises(UnknownImplementationError) as caught:
        find(registry, ref, asked_by="a test")
    assert caught.value.what == what
    assert caught.value.asked_by == "a test"
    assert hint in caught.value.hint
    assert caught.value.name == ref.split("/")[-1]
