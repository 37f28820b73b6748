"""Options mean the same everywhere, and nothing irreversible happens unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, on_terminal
from xenoshell.cli.command import Cli, Given
from xenoshell.cli.exits import Refused
from xenoshell.cli.output import Output
from xenoshell.paths import Paths


def test_options_are_taken_before_and_after_the_command(run: Run, tmp_path: Path) -> None:
    before = run("--json", "--config-dir", tmp_path / "a", "hosts", "list")
    after = run("hosts", "list", "--json", "--config-dir", tmp_path / "a")
    assert before == after
    assert json.loads(before.out) == []


def test_what_is_given_after_the_command_wins() -> None:
    early = Given(quiet=True, state_dir=Path("/early"))
    late = Given(json=True, state_dir=Path("/late"))
    assert late.over(early) == Given(json=True, quiet=True, state_dir=Path("/late"))


def test_directories_follow_option_then_environment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENOSHELL_CONFIG_DIR", str(tmp_path / "environment"))
    run("hosts", "add", "one", "root@one.example")
    run("hosts", "add", "two", "root@two.example", "--config-dir", tmp_path / "option")
    assert "one" in (tmp_path / "environment" / "hosts.toml").read_text()
    assert "two" in (tmp_path / "option" / "hosts.toml").read_text()


def cli(paths: Paths, *, yes: bool = False) -> Cli:
    return Cli(Output(json=False, plain=False, quiet=False, verbose=False), paths, yes, Given())


def test_without_a_terminal_and_without_yes_it_refuses(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"destroys 12 VMs on 9 hosts.*--yes"):
        cli(paths).confirm("destroys 12 VMs on 9 hosts")
    cli(paths, yes=True).confirm("destroys 12 VMs on 9 hosts")


ASK = """
import sys, typer
from xenoshell.cli.command import Given, invoke
def work(cli):
    cli.confirm("destroys 12 VMs on 9 hosts")
    print("DONE IT")
try:
    invoke(Given(), work)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize(
    ("keys", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 4), ("\n", 4), ("what?\n", 4), ("\x04", 4)]
)
def test_on_a_terminal_it_asks_and_only_yes_means_yes(keys: str, code: int) -> None:
    done = on_terminal(sys.executable, "-c", ASK, script=[("Go on? [y/N]", keys)])
    assert "This destroys 12 VMs on 9 hosts." in done.out
    assert done.code == code
    assert ("DONE IT" in done.out) == (code == 0)
