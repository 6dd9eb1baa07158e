"""`prefect-hamilton`, the command behind make: complete help, and a command for each target."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from scripts.__main__ import app
from tests.services import ROOT

PROGRAM = Path(sys.executable).with_name("prefect-hamilton")


def commands(
    command: typer.core.TyperCommand | typer.core.TyperGroup, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    """Yield each command below this one with the words that call it."""
    if not isinstance(command, typer.core.TyperGroup):
        yield words, command
        return
    for name, each in command.commands.items():
        yield from commands(each, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_a_help_text(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    for option in command.params:
        assert getattr(option, "help", None), option.name


def test_every_make_target_calls_an_existing_command() -> None:
    calls = re.findall(r"\$\(RUN\)((?: [a-z]+)+)", (ROOT / "Makefile").read_text())
    assert len(calls) > 10
    assert {tuple(call.split()) for call in calls} <= set(COMMANDS)


def test_the_program_is_in_the_environment() -> None:
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
    for words in (words for words, command in COMMANDS.items() if not command.hidden):
        assert words[0] in done.stdout
