"""Whatever ends a command becomes one message and one of the exit codes; nobody is shown a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xenoshell.cli.exits import Refused, Stop, code_of, explain, mapped
from xenoshell.errors import BadInput
from xenoshell.tomlfile import InputError, InputErrors
from xenoshell.wire.causes import Failure
from xenoshell.wire.remedies import REMEDIES

LOCATED = InputError("a.toml", 3, "vm[0].cuont", "1", "count, hosts", "count", "unknown key")


def ended(tmp_path: Path, error: BaseException, *, verbose: bool = False) -> int:
    with pytest.raises(Stop) as caught, mapped(tmp_path / "logs", verbose):
        raise error
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadInput("no such thing", "try another"), 2, ["no such thing", "try another"]),
        (InputErrors((LOCATED, LOCATED)), 2, ["a.toml:3", "vm[0].cuont", "did you mean count?"]),
        (Refused("not confirmed"), 4, ["not confirmed"]),
        (Failure("unreachable", "ams-1 does not answer"), 3, ["ams-1", "[unreachable]", "to do:"]),
        (Failure("host-key-changed", "another key"), 4, ["another key", "[host-key-changed]"]),
        (Failure("over-budget", "too dear"), 4, ["too dear"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (ExceptionGroup("g", [ExceptionGroup("h", [Failure("no-python", "none there")])]), 3, ["none there"]),
    ],
)
def test_each_kind_has_its_code_and_its_words(
    error: BaseException, code: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(tmp_path, error) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in words), shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "logs").exists()


def test_every_cause_has_one_of_the_codes() -> None:
    assert {code_of(cause) for cause in REMEDIES} == {3, 4, 130}


def test_a_defect_is_logged_and_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(tmp_path, ZeroDivisionError("by \x1b[31mzero")) == 3
    shown = capsys.readouterr().err
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in shown
    assert "Traceback" not in shown
    assert "\x1b" not in shown
    assert "ZeroDivisionError" in log.read_text()


def test_verbose_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path, ZeroDivisionError(), verbose=True)
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_told_even_where_nothing_can_be_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    assert ended(tmp_path, ZeroDivisionError()) == 3
    assert "--verbose" in capsys.readouterr().err


def test_among_failures_a_defect_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path, ExceptionGroup("g", [Failure("timeout", "slow"), ZeroDivisionError()]))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_words_of_a_host_cannot_draw_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path, Failure("protocol", "it said \x1b]0;owned\x07 and \x9b2J\r\u202eabc"))
    assert not set(capsys.readouterr().err) & set("\x1b\x07\x9b\r\u202e")


def test_nor_can_they_in_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "x\x1b]0;title\x07\x9b31m\u202e\ud800"
    for error in (Failure("internal", hostile), ValueError(hostile)):
        explain(error, tmp_path, True)
        shown = capsys.readouterr().err
        assert all(c.isprintable() or c == "\n" for c in shown) and "title" in shown
    assert list(tmp_path.glob("*.log"))


def test_a_reader_that_left_is_no_failure(tmp_path: Path) -> None:
    many = "import sys\nfrom xenoshell.cli.root import build\nbuild()(['new', '--schema'])"
    with subprocess.Popen([sys.executable, "-c", many], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        complaint = child.stderr.read()
        assert child.wait(30) == 0
    assert complaint == b""


PROGRAM = """
import asyncio, sys, typer
from xenoshell.cli.command import Given, invoke

async def work():
    print("ready", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

try:
    invoke(Given(), lambda cli: cli.run(work()))
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_cleans_up_and_says_130(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
            assert child.stdout.read() == "cleaned up\n"
            assert child.wait(20) == 130
        finally:
            child.kill()
