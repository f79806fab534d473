"""The entry point of `transom`: picks the verb, and turns what goes wrong into one message and an exit code.

A verb's module is imported only when that verb runs or its help is shown, so that ``transom list`` loads neither torch
nor a plugin.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import sys
import time
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from transom import __version__
from transom.cli.options import examples
from transom.errors import OutputError, TransomError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transom.cli.hook_verbs import HookVerbs

__all__ = ["EXIT_BROKEN_PIPE", "EXIT_INTERRUPTED", "EXIT_USER_ERROR", "cli", "main"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
_PATIENCE = 10.0
"""Seconds that other ranks than the first wait before they say what is wrong."""

_VERBS: Mapping[str, str] = {
    "list": "List slots and the implementations that fill them.",
    "show": "Show everything that is known about one implementation, hook or bundle, or a slot's contract.",
    "plan": "Show which implementation a spec gets at every place, and why.",
    "lock": "Write down what a spec gets at every place, for others to get the same.",
    "schema": "Print the JSON Schema of specs or of cards.",
    "doctor": "Say what is wrong with this installation; exit with 1 when something is.",
    "new": "Write a plugin that works, for its author to go on from.",
    "check": "Check a distribution or an implementation; exit with 1 when something is wrong.",
    "bench": "Compare implementations of a slot: outputs, gradients and speed.",
    "train": "Train the model that a spec describes.",
    "generate": "Continue texts with a trained checkpoint.",
    "convert": "Write a checkpoint in another form: Hugging Face's, or Transom's own.",
}


class _VerbGroup(click.Group):
    """A group whose verbs live in modules of their names and are imported when asked for; hooks may add others."""

    @cached_property
    def added(self) -> HookVerbs:
        """Verbs of the hooks that the user's config names; asked for only where core's own do not suffice."""
        from transom.cli.hook_verbs import hook_verbs

        return hook_verbs(_VERBS)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs, in the order in which one uses them."""
        return [*_VERBS, *self.added.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb and return its command."""
        if cmd_name not in _VERBS:
            return self.added.commands.get(cmd_name)
        command: click.Command = import_module(f"transom.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is answered with the nearest that exists."""
        if args[0] not in _VERBS and not args[0].startswith("-") and args[0] not in self.added.commands:
            verbs = self.list_commands(ctx)
            near = get_close_matches(args[0], verbs, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(verbs)}."
            ctx.fail("\n".join([f"No such command {args[0]!r}. {hint}", *self.added.problems]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs and their summaries without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))
        added = self.added.commands
        if added:
            with formatter.section("Commands of hooks"):
                formatter.write_dl([(name, command.get_short_help_str()) for name, command in added.items()])
        if self.added.problems:
            with formatter.section("Hooks that add no command"):
                for problem in self.added.problems:
                    formatter.write_text(problem)


@click.group(
    cls=_VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "transom list core_attention",
        "transom plan tiny-llama --use core_attention=dot_product",
        "transom train tiny-llama --out runs/first",
        'transom generate runs/first --prompt "The "',
    ),
)
@click.version_option(__version__, prog_name="transom")
def cli() -> None:
    """A plugin registry for transformers: a spec names every part, installed packages provide them."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        args: the arguments after the program's name; `None` means those of this process.

    Returns:
        0 when all went well, 2 for what a user can mend (a wrong option, a `TransomError`), 130 when interrupted,
        141 when the reader of the output went away. An unexpected exception is a bug and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        with cli.make_context("transom", arguments) as context, _log_to_stderr():
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        _let_first_rank_speak()
        error.show()
        return EXIT_USER_ERROR
    except TransomError as error:
        _let_first_rank_speak()
        if _is_first_rank() or not getattr(error, "is_told_to_all", False):
            _report(error)
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, click.Abort):
        if _is_first_rank():
            click.echo("\nInterrupted.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        _write_no_more()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _write_no_more()
        _report(OutputError(f"the output cannot be written: {error.strerror}."))
        return EXIT_USER_ERROR
    return 0


def _is_first_rank() -> bool:
    """Whether this is the process, or the first of those that ``torchrun`` started: what all know, it alone says."""
    return os.environ.get("RANK", "0") == "0"


def _let_first_rank_speak() -> None:
    """Wait on another rank than the first: what is wrong on all, ``torchrun`` lets only one of them say.

    It ends all ranks when one ends: the first one, which met the same error, in the middle of its report, or those that
    wait here, before they repeat it. After a while without an end, the error is this rank's own.
    """
    if not _is_first_rank():
        time.sleep(_PATIENCE)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show what the library reports, such as an implementation of a chain that is passed over."""
    logger = logging.getLogger("transom")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _report(error: TransomError) -> None:
    """Print an error to stderr: its class and sentence in red, then what it knows."""
    where = "" if _is_first_rank() else f"rank {os.environ['RANK']}: "
    headline = click.style(f"{where}{type(error).__name__}: {error.what}", fg="red")
    details = "\n  ".join([str(error).removeprefix(error.what), *getattr(error, "__notes__", ())])
    click.echo(headline + details, err=True, color=False if os.environ.get("NO_COLOR") else None)
    _tell_torchrun(f"{where}{type(error).__name__}: {error.what}{details}")


def _tell_torchrun(text: str) -> None:
    """Leave an error where ``torchrun`` looks for it, whose summary is the last that a user sees."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": text, "timestamp": int(time.time())}))


def _reader_is_gone() -> bool:
    """Whether it is our own output that nobody reads any more, and not some other pipe."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _write_no_more() -> None:
    """Drop what is still buffered for the output, which the interpreter would write when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
