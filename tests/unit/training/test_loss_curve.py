from __future__ import annotations

import sys

import pytest
from matplotlib.figure import Figure
from transom.errors import OutputError
from transom.training.loss_curve import draw_loss_curve

ROWS = [
    {"step": 1, "loss": 5.0},
    {"step": 2, "loss": 4.0, "validation_loss": 4.5},
    {"step": 3, "loss": 3.0},
    {"step": 4, "loss": 2.5, "validation_loss": 3.5},
]


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))[1]
    )
    return figures


def test_loss_curve_is_a_png_of_both_losses_and_the_yardstick(tmp_path, drawn):
    assert draw_loss_curve(ROWS, tmp_path / "loss.png", title="toy", bigram=3.25)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["training"] == ([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.5])
    assert lines["validation"] == ([2, 4], [4.5, 3.5])
    assert lines["bigram model, validation"][1] == [3.25, 3.25]
    assert (axes.get_title(), axes.get_xlabel()) == ("toy", "step")


def test_loss_curve_has_no_level_when_there_is_no_yardstick(tmp_path, drawn):
    assert draw_loss_curve(ROWS[:1], tmp_path / "loss.png", title="toy")
    assert len(drawn[0].axes[0].lines) == 2


def test_loss_curve_replaces_the_one_before(tmp_path):
    (tmp_path / "loss.png").write_text("old")
    assert draw_loss_curve(ROWS, tmp_path / "loss.png", title="toy")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_loss_curve_is_left_out_when_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_loss_curve(ROWS, tmp_path / "loss.png", title="toy")
    assert list(tmp_path.iterdir()) == []


def test_loss_curve_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*loss\.png: No such file"):
        draw_loss_curve(ROWS, tmp_path / "no" / "loss.png", title="toy")
