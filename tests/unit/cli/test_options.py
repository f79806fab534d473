"""`--use` and the other options that verbs share."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from transom.cli.options import device_option, dtype_option, examples, json_option, mode_option, parse_use, use_option


@click.command(epilog=examples("verb --use a=b"))
@use_option
@json_option
@device_option
@dtype_option
@mode_option
def verb(**options: object) -> None:
    """Print what the options gave."""
    click.echo(repr(options))


def _run(*args: str):
    return CliRunner().invoke(verb, args)


def test_options_have_their_defaults_when_not_given():
    assert _run().output == "{'use': {}, 'as_json': False, 'device': 'cpu', 'dtype': None, 'mode': 'train'}\n"


def test_use_option_collects_slots_paths_and_chains_in_order():
    done = _run("--use", "layers.0.mlp=acme/moe", "--use", "core_attention = a | b")
    assert "'use': {'layers.0.mlp': 'acme/moe', 'core_attention': 'a | b'}" in done.output


@pytest.mark.parametrize("wrong", ["core_attention", "=name", "slot=", " = ", ""])
def test_use_option_is_named_in_the_error_when_it_is_no_assignment(wrong):
    done = _run("--use", wrong)
    assert done.exit_code == 2
    assert f"Invalid value for '--use': {wrong!r} is not SLOT=NAME." in done.output


def test_use_option_refuses_a_slot_that_is_given_twice():
    done = _run("--use", "norm=a", "--use", "norm=b")
    assert done.exit_code == 2
    assert "Invalid value for '--use': 'norm' is given twice: 'a' and 'b'." in done.output


def test_parse_use_splits_at_the_first_equals_sign():
    assert parse_use(["a=b=c"]) == {"a": "b=c"}


def test_mode_option_names_its_choices_when_it_is_neither():
    done = _run("--mode", "eval")
    assert done.exit_code == 2
    assert "'eval' is not one of 'train', 'infer'" in done.output


def test_examples_stay_as_written_in_the_help():
    assert _run("--help").output.endswith("  Examples:\n    verb --use a=b\n")
