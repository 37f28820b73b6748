"""What a guest says is in its log, whatever happens to those who listen."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host_vm import counting
from tests.host_vm.guests import Guest, Host, spec
from tests.support import eventually
from xenoshell.host import serial_line
from xenoshell.host.reactor import Reactor
from xenoshell.host.serial_line import SerialLine
from xenoshell.wire import frames
from xenoshell.wire.values import Ready


@pytest.fixture
def counter(host: Host, tmp_path: Path) -> Guest:
    """The counting guest, which waits for its key."""
    image = tmp_path / "counting"
    image.write_bytes(counting.disk())
    ready = Ready("console", match="Booting from Hard Disk")
    guest = Guest(host, spec(boot="disk", kernel=None, disk=host.blob(image), disk_bytes=1 << 20, memory_mib=32,
                             ready=ready, stop_grace_s=0.1))  # fmt: skip
    guest.until("ready")
    with guest.talk() as talk:
        stream = talk.request("console", replay=0)
        for _ in range(30):  # the BIOS may still be there to swallow the key
            talk.connection.sendall(frames.pack(frames.DATA, stream, b"g"))
            with contextlib.suppress(TimeoutError):
                talk.text(stream, b"!", 1.0)
                return guest
    raise AssertionError("the guest does not hear its key")


def pass_time(seconds: float) -> None:
    """The guest counts after half a second; nothing that may be looked at tells when it has done so."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, seconds + 5)


@pytest.mark.e2e
def test_a_supervisor_that_stands_still_misses_no_byte(counter: Guest) -> None:
    keepers = counter.keepers()
    for process in keepers:
        os.kill(process.pid, signal.SIGSTOP)
    pass_time(1.5)
    for process in keepers:
        os.kill(process.pid, signal.SIGCONT)
    eventually(lambda: counter.log().endswith(counting.COUNT[-7:]))
    assert counter.log().endswith(b"!" + counting.COUNT)


@pytest.mark.e2e
def test_what_a_guest_says_while_nobody_is_there_is_in_the_log_of_the_next(counter: Guest) -> None:
    counter.kill_keepers()
    pass_time(1.5)
    counter.adopt()
    eventually(lambda: counter.log().endswith(counting.COUNT[-7:]))
    assert counter.log().endswith(b"!" + counting.COUNT)


class Line:
    """Both ends of a serial line, with the test in QEMU's place."""

    def __init__(self, directory: Path) -> None:
        serial_line.make(str(directory))
        self.directory = directory
        self.qemu_in = os.open(directory / "con.in", os.O_RDWR | os.O_NONBLOCK)
        self.qemu_out = os.open(directory / "con.out", os.O_RDWR | os.O_NONBLOCK)
        self.said = b""

    def attach(self) -> SerialLine:
        return SerialLine(Reactor(), str(self.directory), self.hear)

    def hear(self, data: bytes) -> None:
        self.said += data


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    try:
        yield made
    finally:
        os.close(made.qemu_in)
        os.close(made.qemu_out)


def test_single_bytes_wait_in_the_line_and_one_that_overflowed_is_told(line: Line) -> None:
    first = line.attach()
    first.close()
    text = bytes(n % 251 for n in range(50_000))
    for n in range(len(text)):
        os.write(line.qemu_out, text[n : n + 1])
    second = line.attach()
    second.drain()
    assert not second.full and line.said == text
    second.close()
    with contextlib.suppress(BlockingIOError):
        while os.write(line.qemu_out, bytes(4096)):
            pass
    third = line.attach()
    assert third.full
    third.close()


def test_a_guest_that_never_stops_writing_is_not_waited_for(line: Line) -> None:
    """Its supervisor has more to do: to end its lease, for one."""

    def goes_on(data: bytes) -> None:
        line.said += data
        assert len(line.said) < 16 * serial_line.SIZE, "this never ends"
        os.write(line.qemu_out, bytes(4096))

    attached = SerialLine(Reactor(), str(line.directory), goes_on)
    os.write(line.qemu_out, bytes(4096))
    attached.drain()
    assert len(line.said) >= serial_line.SIZE
    attached.close()


def test_input_that_the_guest_does_not_take_waits_and_keeps_its_order(line: Line) -> None:
    attached = line.attach()
    text = bytes(n % 251 for n in range(100_000))
    for at in range(0, len(text), 1000):
        attached.write(text[at : at + 1000])
    assert attached.pending > 0
    got = b""
    while len(got) < len(text):
        got += os.read(line.qemu_in, 4096)
        attached.write(b"")
    assert got == text and attached.pending == 0
    attached.close()


def test_a_new_run_has_an_empty_line(line: Line) -> None:
    os.write(line.qemu_out, b"of the old run")
    serial_line.make(str(line.directory))
    attached = line.attach()
    attached.drain()
    assert line.said == b""
    attached.close()
