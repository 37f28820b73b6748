"""A console takes the terminal and gives it back as it was, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import eventually, eventually_async
from xenoshell.console.attach import Ending, attach, escape_name, parse_escape
from xenoshell.errors import BadInput
from xenoshell.wire.causes import Failure


class Guest:
    """A console stream of the test's own: what it says, and what it was told."""

    def __init__(self, log: bytes = b"") -> None:
        self.replay = len(log)
        self.told = b""
        self._says: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        if log:
            self._says.put_nowait(log)

    def say(self, data: bytes | Exception) -> None:
        self._says.put_nowait(data)

    async def read(self) -> bytes:
        said = await self._says.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def write(self, data: bytes) -> None:
        self.told += data


@dataclass
class Terminal:
    """A real pseudo-terminal: the side that programs see, and the side where a person sits."""

    inner: int
    outer: int
    shown: bytes = b""

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.inner)[3] & (termios.ICANON | termios.ECHO)

    def type(self, data: bytes) -> None:
        os.write(self.outer, data)

    def look(self) -> bytes:
        with contextlib.suppress(BlockingIOError, OSError):
            self.shown += os.read(self.outer, 65536)
        return self.shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    outer, inner = pty.openpty()
    os.set_blocking(outer, False)
    yield Terminal(inner, outer)
    os.close(inner)
    os.close(outer)


@contextlib.asynccontextmanager
async def attached(guest: Guest, terminal: Terminal) -> AsyncIterator[asyncio.Task[Ending]]:
    task = asyncio.create_task(attach(guest, stdin=terminal.inner, stdout=terminal.inner))
    await until(lambda: terminal.raw)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def until(check: Callable[[], object], timeout_s: float = 5.0) -> None:
    await eventually_async(check, timeout_s)


async def test_both_directions_and_the_escape_key(terminal: Terminal) -> None:
    guest = Guest(b"login: ")
    before = termios.tcgetattr(terminal.inner)
    async with attached(guest, terminal) as task:
        await until(lambda: b"login: " in terminal.look())
        terminal.type(b"root\r\x03")
        await until(lambda: guest.told == b"root\r\x03")  # Ctrl-C goes to the guest, and nothing is echoed here
        guest.say(b"Password: ")
        await until(lambda: b"Password: " in terminal.look())
        terminal.type(b"x\x1d")
        assert await asyncio.wait_for(task, 5) is Ending.ESCAPED
    assert guest.told == b"root\r\x03x"
    assert termios.tcgetattr(terminal.inner) == before


async def test_what_was_typed_after_leaving_is_not_run_by_the_shell(terminal: Terminal) -> None:
    async with attached(Guest(), terminal) as task:
        terminal.type(b"\x1drm -rf important\n")
        assert await asyncio.wait_for(task, 5) is Ending.ESCAPED
    os.set_blocking(terminal.inner, False)
    with pytest.raises(BlockingIOError):
        os.read(terminal.inner, 100)


@pytest.mark.parametrize("way", ["failure", "cancelled", "closed", "defect"])
async def test_the_terminal_is_restored_whatever_happens(terminal: Terminal, way: str) -> None:
    guest = Guest()
    before = termios.tcgetattr(terminal.inner)
    async with attached(guest, terminal) as task:
        guest.say(b"\x1b[?1049h\x1b[?1002h\x1b[?25lfull screen")
        await until(lambda: b"full screen" in terminal.look())
        if way == "failure":
            guest.say(Failure("connection-lost", "gone"))
            with pytest.raises(Failure):
                await asyncio.wait_for(task, 5)
        elif way == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif way == "closed":
            guest.say(b"")
            assert await asyncio.wait_for(task, 5) is Ending.CLOSED
        else:
            guest.say(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(task, 5)
    assert termios.tcgetattr(terminal.inner) == before
    await until(lambda: b"\x1b[?25h" in terminal.look())
    assert b"\x1b[?1049l" in terminal.shown and b"\x1b[?1002l" in terminal.shown
    assert terminal.shown.endswith(b"\r\n\x1b[J")  # what the guest drew further down does not stand among what follows


async def test_questions_of_an_old_log_are_not_put_to_the_terminal(terminal: Terminal) -> None:
    guest = Guest(b"old \x1b[6n log")
    async with attached(guest, terminal):
        guest.say(b"new \x1b[6n here")
        await until(lambda: b"here" in terminal.look())
    assert terminal.shown.startswith(b"old  lognew \x1b[6n here")


async def test_the_log_and_live_output_in_one_piece_are_told_apart(terminal: Terminal) -> None:
    joined = Guest()
    joined.replay = len(b"old \x1b[6n")
    joined.say(b"old \x1b[6nnew \x1b[6n.")
    async with attached(joined, terminal):
        await until(lambda: b"." in terminal.look())
    assert terminal.shown.startswith(b"old new \x1b[6n.")


async def test_what_is_on_the_screen_moves_into_the_scrollback(terminal: Terminal) -> None:
    fcntl.ioctl(terminal.inner, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 80, 0, 0))
    async with attached(Guest(b"\x1b[2Jlog"), terminal):
        await until(lambda: b"log" in terminal.look())
    assert terminal.shown.startswith(b"\r\n" * 5 + b"\x1b[H\x1b[2Jlog")


async def test_an_attack_does_not_reach_the_terminal(terminal: Terminal) -> None:
    guest = Guest(b"\x1b]52;c;AAAA\x07")
    async with attached(guest, terminal):
        guest.say(b"\x1b]0;title\x07\x1b[21tdone")
        await until(lambda: b"done" in terminal.look())
    assert b"52;c" not in terminal.shown and b"title" not in terminal.shown and b"[21t" not in terminal.shown


async def test_pipes_carry_text_and_end_after_the_answer() -> None:
    guest = Guest(b"\x1b[31m$ \x1b[0m")
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    os.write(writer, b"uptime\n\x1d\n")
    os.close(writer)
    task = asyncio.create_task(attach(guest, stdin=reader, stdout=out_writer, linger_s=0.2))
    await until(lambda: guest.told == b"uptime\n\x1d\n")  # from a pipe every byte is the guest's
    guest.say(b"up 3 days\r\n")
    assert await asyncio.wait_for(task, 5) is Ending.INPUT_ENDED
    assert os.read(out_reader, 1000) == b"$ up 3 days\n"
    for fd in (reader, out_reader, out_writer):
        os.close(fd)


async def test_input_may_come_from_a_file(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"reboot\n")
    guest = Guest()
    with script.open("rb") as source, (tmp_path / "out").open("wb") as sink:
        ending = await attach(guest, stdin=source.fileno(), stdout=sink.fileno(), linger_s=0.05)
    assert ending is Ending.INPUT_ENDED
    assert guest.told == b"reboot\n"


async def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    guest = Guest()
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    os.close(out_reader)
    task = asyncio.create_task(attach(guest, stdin=reader, stdout=out_writer))
    guest.say(b"anybody?")
    assert await asyncio.wait_for(task, 5) is Ending.OUTPUT_GONE
    for fd in (reader, writer, out_writer):
        os.close(fd)


async def test_a_host_that_takes_no_input_ends_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Guest):
        async def write(self, data: bytes) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("xenoshell.console.attach._WRITE_S", 0.05)
    async with attached(Stuck(), terminal) as task:
        terminal.type(b"x")
        with pytest.raises(Failure) as caught:
            await asyncio.wait_for(task, 5)
    assert caught.value.cause == "timeout"


PROGRAM = """
import asyncio, sys
from xenoshell.cli.command import Cli, Given
from xenoshell.cli.output import Output
from xenoshell.cli.exits import Stop
from xenoshell.console.attach import attach
from xenoshell.paths import paths

class Guest:
    replay = 0
    said = [b"\\x1b[?1049hready"]
    async def read(self):
        if self.said:
            return self.said.pop()
        await asyncio.Event().wait()
    async def write(self, data):
        pass

try:
    Cli(Output(False, False, False, False), paths(), False, Given()).run(attach(Guest()))
except Stop as stop:
    sys.exit(stop.code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal_too(terminal: Terminal, number: signal.Signals) -> None:
    before = termios.tcgetattr(terminal.inner)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=terminal.inner, stdout=terminal.inner, stderr=subprocess.PIPE
    ) as process:
        try:
            eventually(lambda: b"ready" in terminal.look(), 20)
            assert terminal.raw
            process.send_signal(number)
            _, words = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130, words
    assert termios.tcgetattr(terminal.inner) == before
    assert b"\x1b[?1049l" in terminal.look()


def test_a_stop_and_a_continue_leave_the_console_raw(terminal: Terminal) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=terminal.inner, stdout=terminal.inner) as process:
        try:
            eventually(lambda: b"ready" in terminal.look(), 20)
            cooked = termios.tcgetattr(terminal.inner)
            cooked[3] |= termios.ICANON | termios.ECHO
            termios.tcsetattr(terminal.inner, termios.TCSANOW, cooked)  # as a shell does when its job was stopped
            assert not terminal.raw
            process.send_signal(signal.SIGCONT)
            eventually(lambda: terminal.raw)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("text", "key", "name"), [("^]", b"\x1d", "Ctrl-]"), ("^a", b"\x01", "Ctrl-A"), ("~", b"~", "~"), ("none", b"", "")]
)
def test_the_escape_key_can_be_chosen(text: str, key: bytes, name: str) -> None:
    assert parse_escape(text) == key
    assert escape_name(key) == name


@pytest.mark.parametrize("text", ["", "^^^", "ctrl-x", "é"])
def test_a_strange_escape_key_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadInput, match="allowed are"):
        parse_escape(text)
