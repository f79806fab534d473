from __future__ import annotations

import io

from rich.console import Console
from transom.training.progress import LineReporter, ProgressBar, SilentReporter, reporter_for

ROW = {"step": 10, "loss": 2.34567, "tokens_per_second": 12345.6}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _run(reporter):
    reporter.start("toy", 5, 20)
    reporter.advance(10)
    reporter.row(ROW | {"validation_loss": 2.5})
    reporter.note("something [happened]")
    reporter.row(ROW | {"step": 20})
    reporter.stop()


def test_lines_say_step_loss_validation_and_speed():
    stream = io.StringIO()
    _run(LineReporter(stream))
    assert stream.getvalue().splitlines() == [
        "training toy: 20 steps, 5 done",
        "step 10/20  loss 2.3457  validation 2.5000  12,346 tokens/s",
        "something [happened]",
        "step 20/20  loss 2.3457  12,346 tokens/s",
    ]


def test_lines_of_a_new_run_speak_of_no_steps_done():
    stream = io.StringIO()
    LineReporter(stream).start("toy", 0, 20)
    assert stream.getvalue() == "training toy: 20 steps\n"


def test_bar_shows_steps_loss_validation_and_speed():
    stream = Terminal()
    _run(ProgressBar(Console(file=stream, force_terminal=True, width=120, color_system=None)))
    text = stream.getvalue()
    assert "toy" in text
    assert "10/20" in text
    assert "something [happened]" in text
    assert "loss 2.3457  validation 2.5000  12,346 tokens/s" in text.splitlines()[-2]


def test_silence_is_silent(capsys):
    _run(SilentReporter())
    assert capsys.readouterr() == ("", "")


def test_reporter_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    assert isinstance(reporter_for(Terminal()), ProgressBar)
    assert isinstance(reporter_for(io.StringIO()), LineReporter)
