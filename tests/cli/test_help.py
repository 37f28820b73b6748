"""Help: complete, in the words of the README, and never wider than the window."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run
from xenoshell.cli.command import Given

COMMANDS = [
    *("demo", "doctor", "lab up", "lab status", "lab down"),
    *("hosts list", "hosts add", "hosts trust", "hosts check", "hosts remove"),
    *("images list", "images build", "images inspect"),
    *("new", "check", "quote", "plan", "deploy", "resume", "replay"),
    *("ps", "logs", "console", "ssh", "stop", "start", "restart", "destroy", "renew"),
]


@pytest.fixture(autouse=True)
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "<str>" not in done.out and "[[" not in done.out and "{" not in done.out
    own, everywhere = done.out.split("Everywhere:")
    for option in Given.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in everywhere
        assert f"--{option.replace('_', '-')} " not in own


@pytest.mark.parametrize("words", [(), ("--help",), ("lab", "--help"), ("hosts", "--help"), ("images", "--help")])
def test_overviews_fit_and_cut_nothing(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert max(map(len, done.out.splitlines())) <= 80
    assert "..." not in done.out.replace("[ARGS]...", "")


def test_the_overview_names_every_command(run: Run) -> None:
    text = run("--help").out
    for command in COMMANDS:
        assert f"\n  {command.split()[0]} " in text


def test_arguments_are_named_as_in_the_usage_line(run: Run) -> None:
    for command, line in (
        ("logs", "[OPTIONS] SESSION/VM\n"),
        ("ps", "[OPTIONS] [SESSION]\n"),
        ("stop", "SESSION[/VM]\n"),
    ):
        assert line in run(command, "--help").out
