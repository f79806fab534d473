"""The entry point: verbs, errors, exit codes, the terminal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from transom.cli import main as cli_main
from transom.cli.main import cli, main
from transom.errors import ParallelError, UnknownSlotError

SCRIPT = "import sys; from transom.cli.main import main; sys.exit(main())"


@pytest.fixture
def verb(monkeypatch):
    """Give a function that makes `transom try` run its argument."""

    def install(body):
        module = types.ModuleType("transom.cli.try")
        module.command = click.Command("try", callback=body)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cli_main, "_VERBS", {**cli_main._VERBS, "try": "Try."})

    return install


def _raise(error):
    def body():
        raise error

    return body


def test_main_returns_zero_when_the_verb_returns(verb, capsys):
    verb(lambda: click.echo("done"))
    assert main(["try"]) == 0
    assert capsys.readouterr() == ("done\n", "")


def test_main_prints_class_and_layout_to_stderr_when_a_transom_error_comes(verb, capsys):
    verb(_raise(UnknownSlotError("no slot is named 'nrom'.", asked_by="SLOT", hint="norm?", slot="nrom")))
    assert main(["try"]) == 2
    expected = "UnknownSlotError: no slot is named 'nrom'.\n  Asked by:   SLOT\n  Try:        norm?\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(("no_color", "start"), [("", "\x1b[31m"), ("1", "UnknownSlotError: ")], ids=["red", "plain"])
def test_main_prints_the_sentence_in_red_on_a_terminal_unless_no_color_is_set(no_color, start):
    terminal, its_end = os.openpty()
    command = [sys.executable, "-c", SCRIPT, "list", "nrom"]
    done = subprocess.run(command, stderr=its_end, env={**os.environ, "NO_COLOR": no_color}, check=False)
    os.close(its_end)
    printed = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert done.returncode == 2
    assert printed.startswith(start)
    assert click.unstyle(printed).startswith("UnknownSlotError: no slot is named 'nrom'.\r\n  ")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()], ids=["ctrl-c", "abort"])
def test_main_returns_130_when_interrupted(verb, capsys, interrupt):
    verb(_raise(interrupt))
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_main_shows_what_the_library_logs_and_leaves_the_logger_as_it_was(verb, capsys):
    logger = logging.getLogger("transom")
    before = (logger.level, list(logger.handlers))
    verb(lambda: logger.info("norm %s is passed over", "fast"))
    assert main(["try"]) == 0
    assert capsys.readouterr().err == "norm fast is passed over\n"
    assert (logger.level, logger.handlers) == before


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), BrokenPipeError("a worker's pipe"), ValueError("plain")])
def test_main_lets_an_unexpected_exception_through(verb, error):
    verb(_raise(error))
    with pytest.raises(type(error), match=str(error)):
        main(["try"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["frobnicate"], f"No such command 'frobnicate'. There are: {', '.join(cli_main._VERBS)}."),
        (["--verson"], "No such option"),
        (["list", "--jsn"], "No such option"),
        (["plan"], "Missing argument 'SPEC'."),
    ],
)
def test_main_returns_2_when_the_command_line_is_wrong(capsys, args, message):
    assert main(args) == 2
    assert message in capsys.readouterr().err


def test_main_prints_the_help_when_there_are_no_arguments(capsys):
    assert main([]) == 2
    assert "Usage: transom" in "".join(capsys.readouterr())


def test_version_is_printed(capsys):
    from transom import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"transom, version {__version__}\n"


def test_help_lists_every_verb_and_imports_none():
    code = "import sys\nfrom transom.cli.main import main\nmain(['--help'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    help_text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert all(f"  {verb}  " in help_text for verb in cli_main._VERBS)
    assert not {f"transom.cli.{verb}" for verb in cli_main._VERBS} & set(modules.split())


@pytest.mark.parametrize("verb_name", cli_main._VERBS)
def test_verb_says_what_the_group_says_and_shows_an_example(verb_name):
    context = click.Context(cli)
    command = cli.get_command(context, verb_name)
    assert command.get_short_help_str(limit=200) == cli_main._VERBS[verb_name]
    assert f"transom {verb_name}" in command.get_help(click.Context(command, info_name=verb_name)).split("Examples:")[1]


@pytest.mark.parametrize("lines", [1, 100_000])
def test_main_is_silent_when_the_reader_of_its_output_goes_away(lines):
    code = (
        f"import transom.cli.main as m, transom.cli.list as l, click, sys\n"
        f"l.command = click.Command('list', callback=lambda: print('line\\n' * {lines}))\nsys.exit(m.main(['list']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("lines", [1, 100_000])
def test_main_says_so_when_its_output_cannot_be_written(lines):
    code = (
        f"import transom.cli.main as m, transom.cli.list as l, click, sys\n"
        f"l.command = click.Command('list', callback=lambda: print('line\\n' * {lines}))\nsys.exit(m.main(['list']))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "OutputError: the output cannot be written: No space left on device.\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("rank", "told", "said"),
    [
        ("0", True, "ParallelError: 3 ranks are too many.\n"),
        ("0", False, "ParallelError: 3 ranks are too many.\n"),
        ("1", True, ""),
        ("1", False, "rank 1: ParallelError: 3 ranks are too many.\n"),
    ],
)
def test_main_lets_the_first_rank_say_what_all_know(monkeypatch, capsys, rank, told, said):
    waited = []

    def fail(*_):
        error = ParallelError("3 ranks are too many.")
        error.is_told_to_all = told
        raise error

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli_main.time, "sleep", waited.append)
    monkeypatch.setattr(cli_main.cli, "invoke", fail)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == said
    assert waited == ([] if rank == "0" else [10.0])


def test_main_leaves_the_error_where_torchrun_looks_for_it(monkeypatch, capsys, verb, tmp_path):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    verb(_raise(ParallelError("3 ranks are too many.", hint="2")))
    assert main(["try"]) == 2
    text = "ParallelError: 3 ranks are too many.\n  Try:        2"
    assert capsys.readouterr().err == f"{text}\n"
    assert json.loads(file.read_text())["message"] == text
    assert ProcessFailure(0, 1, 2, str(file)).message == text
