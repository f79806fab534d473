"""The exception tree, its layout and its data."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from transom import errors
from transom.errors import ResolutionError, TransomError, UnknownImplementationError

FULL = (
    "no core_attention is named 'flash_atention'.\n"
    "  Asked by:   use.core_attention in tiny-llama.yaml\n"
    "  Available:  dot_product (transom 0.1.0), torch_dot_product (transom-torch-dot-product 0.1.0)\n"
    "  Failed:     acme_attn (acme-attn 2.0): ImportError: libacme.so not found\n"
    "              other (other 1.0): refused\n"
    "  Try:        torch_dot_product?   All: transom list core_attention"
)


def _full_error() -> UnknownImplementationError:
    return UnknownImplementationError(
        "no core_attention is named 'flash_atention'.",
        asked_by="use.core_attention in tiny-llama.yaml",
        available=["dot_product (transom 0.1.0)", "torch_dot_product (transom-torch-dot-product 0.1.0)"],
        failed=["acme_attn (acme-attn 2.0): ImportError: libacme.so not found", "other (other 1.0): refused"],
        hint="torch_dot_product?   All: transom list core_attention",
        slot="core_attention",
        name="flash_atention",
    )


def test_error_writes_every_row_in_the_one_layout():
    assert str(_full_error()) == FULL


def test_error_leaves_out_the_rows_that_it_knows_nothing_of():
    assert str(TransomError("the moon is not mounted.")) == "the moon is not mounted."


def test_error_indents_the_further_lines_of_a_row():
    text = str(TransomError("no.", hint="first\nsecond"))
    assert text == "no.\n  Try:        first\n              second"


def test_error_shows_the_first_of_a_long_list_and_keeps_all():
    names = [f"n{number}" for number in range(40)]
    error = TransomError("no.", available=names)
    assert str(error).endswith("n22, n23, and 16 more")
    assert error.available == tuple(names)
    assert str(TransomError("no.", available=names[:25])).endswith("n23, n24")


def test_error_keeps_its_data_as_attributes():
    error = _full_error()
    assert (error.slot, error.name) == ("core_attention", "flash_atention")
    assert error.what == "no core_attention is named 'flash_atention'."
    assert error.asked_by == "use.core_attention in tiny-llama.yaml"
    assert error.available == ("dot_product (transom 0.1.0)", "torch_dot_product (transom-torch-dot-product 0.1.0)")
    assert error.failed[1] == "other (other 1.0): refused"
    assert error.hint == "torch_dot_product?   All: transom list core_attention"


@pytest.mark.parametrize(
    "duplicate", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_error_survives_the_way_between_processes(duplicate):
    error = _full_error()
    twin = duplicate(error)
    assert type(twin) is UnknownImplementationError
    assert str(twin) == FULL
    assert vars(twin) == vars(error)


def test_error_consumes_an_iterator_once_and_keeps_what_it_gave():
    error = ResolutionError("none can serve.", failed=(line for line in ("a", "b")), slot="norm")
    assert error.failed == ("a", "b")
    assert str(error).endswith("Failed:     a\n              b")


def test_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = {}
    ancestors = [ValueError]
    for line in inspect.getdoc(errors).splitlines():
        if "Error" not in line or not line.strip().startswith(("├", "└", "│", "TransomError(")):
            continue
        depth = sum(character in "├└│" for character in line)
        name = line.strip("│├└─ ").split()[0].split("(")[0]
        del ancestors[depth + 1 :]
        drawn[name] = ancestors[-1]
        ancestors.append(getattr(errors, name))
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, Exception)}
    assert drawn == {name: cls.__base__ for name, cls in classes.items()}


def test_all_names_every_error_sorted():
    assert errors.__all__ == sorted(errors.__all__)
    assert {cls.__name__ for cls in vars(errors).values() if inspect.isclass(cls)} >= set(errors.__all__)
    assert all(issubclass(getattr(errors, name), TransomError) for name in errors.__all__)


def test_every_error_is_a_value_error():
    with pytest.raises(ValueError, match="none"):
        raise ResolutionError("none", slot="norm")
