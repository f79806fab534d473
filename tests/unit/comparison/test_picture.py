"""A comparison as a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import rc_context
from transom.comparison.compare import Comparison, Outcome
from transom.comparison.picture import check_picture, draw_comparison
from transom.comparison.timing import Times
from transom.errors import InputError, OutputError

FOUND = Comparison(
    slot="norm",
    path="n",
    mode="infer",
    device="cpu",
    dtype="float32",
    outcomes={(1, 8): (Outcome(name="a", forward=Times((1.0,)), both=None, output_error=0.0, gradient_error=None),)},
    refused={},
)


@pytest.mark.parametrize(("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_draw_comparison_writes_what_the_suffix_says(name, start, tmp_path):
    draw_comparison(FOUND, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_draw_comparison_refuses_another_format(tmp_path):
    with pytest.raises(InputError, match="no picture that can be drawn"):
        draw_comparison(FOUND, tmp_path / "c.docx")
    assert list(Path(tmp_path).iterdir()) == []


def test_check_picture_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="its folder is not there") as raised:
        check_picture(tmp_path / "none" / "c.png")
    assert raised.value.hint == f"mkdir {tmp_path / 'none'}"


def test_draw_comparison_says_who_computes_something_else(tmp_path):
    (first,) = FOUND.outcomes[1, 8]
    outcomes = {(1, 8): (first, replace(first, name="b", mistake="its outputs have NaN"))}
    with rc_context({"svg.fonttype": "none"}):
        draw_comparison(replace(FOUND, outcomes=outcomes), tmp_path / "c.svg")
    assert "b (computes something else)" in (tmp_path / "c.svg").read_text()
