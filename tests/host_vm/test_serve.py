"""The supervisor's socket: viewers that are slow, gone or many; a log and what comes after it without a gap."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host_vm.guests import Talk, spec
from tests.support import eventually
from xenoshell.host.console_log import ConsoleLog
from xenoshell.host.machine import listen
from xenoshell.host.reactor import READ, Reactor
from xenoshell.host.serve import BEHIND, Owner, Server
from xenoshell.host.vmdir import connect_unix, first_status
from xenoshell.wire import frames
from xenoshell.wire.values import VmStatus


class Vm(Owner):
    """A VM whose console says what the test wants, in a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = ConsoleLog(str(directory), 1 << 20)
        self.log.begin()
        self.typed = b""
        self.reactor = Reactor()
        self.server = Server(self.reactor, listen(str(directory), "sup.sock"), self)
        self._calls: list[Callable[[], object]] = []
        self._wake, poked = os.pipe()
        self._poked = poked
        self.reactor.watch(self._wake, READ, self._run)
        self.thread = threading.Thread(target=self.reactor.run)
        self.thread.start()

    def do(self, call: Callable[[], object]) -> None:
        """Have the loop do something."""
        self._calls.append(call)
        os.write(self._poked, b"1")

    def _run(self, _ready: int) -> None:
        os.read(self._wake, 1)
        self._calls.pop(0)()

    def say(self, data: bytes) -> None:
        """The guest writes."""

        def both() -> None:
            self.log.write(data)
            self.server.console(data)

        self.do(both)

    def end(self) -> None:
        self.do(self.reactor.stop)
        self.thread.join(10)
        self.server.close()
        self.log.close()
        os.close(self._wake)
        os.close(self._poked)

    def talk(self) -> Talk:
        return Talk(connect_unix(str(self.directory), "sup.sock", 10))

    def current(self) -> VmStatus:
        return first_status(spec(), time.time())

    def converge(self) -> None:
        pass

    def renew(self, seconds: float, budget_s: float | None) -> None:
        pass

    def type(self, data: bytes) -> None:
        self.typed += data


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    made = Vm(tmp_path)
    try:
        yield made
    finally:
        made.end()


def received(talk: Talk, stream: int, until: Callable[[bytes], bool]) -> bytes:
    seen = bytearray()
    while not until(bytes(seen)):
        seen += talk.take(stream, 10, frames.DATA).payload
    return bytes(seen)


def test_a_viewer_that_does_not_read_costs_nothing_and_is_told_what_it_missed(vm: Vm) -> None:
    stuck, reader = vm.talk(), vm.talk()
    with stuck.connection, reader.connection:
        mine, its = stuck.request("console", replay=0), reader.request("console", replay=0)
        stuck.take(mine)
        reader.take(its)
        seen = 0
        for _ in range(200):  # 12 MiB, as fast as one reads and the other does not
            vm.say(bytes(65536))
            while seen < 65536:
                seen += len(reader.take(its, 10, frames.DATA).payload)
            seen -= 65536
            assert max(client.stream.pending for client in vm.server.clients) <= BEHIND + 66000
        got = received(stuck, mine, lambda data: data.endswith(b"bytes skipped]\r\n"))
        skipped = int(got.rpartition(b": ")[2].split()[0])
        assert len(got) - len(b"\r\n[xenoshell: %d bytes skipped]\r\n" % skipped) + skipped == 200 * 65536
        vm.say(b"and on it goes")
        assert received(stuck, mine, lambda data: b"goes" in data) == b"and on it goes"


def test_a_log_is_followed_without_a_gap_or_a_repeat(vm: Vm) -> None:
    numbers = [b"%07d\n" % n for n in range(60_000)]
    for at in range(0, 50_000, 1000):
        vm.say(b"".join(numbers[at : at + 1000]))
    talk = vm.talk()
    with talk.connection:
        stream = talk.request("logs", follow=True, tail=0)
        for at in range(50_000, 60_000, 1000):
            vm.say(b"".join(numbers[at : at + 1000]))
        got = received(talk, stream, lambda data: data.endswith(numbers[-1]))
        assert got == b"".join(numbers)
        for at in range(0, 60_000, 1000):  # one that is slow now is given it from the log, later
            vm.say(b"".join(numbers[at : at + 1000]))
        with vm.talk().connection as other:
            assert Talk(other).ask("status")["name"] == "web-1"
        assert max(client.stream.pending for client in vm.server.clients) <= BEHIND + 66000
        assert received(talk, stream, lambda data: data.endswith(numbers[-1])) == b"".join(numbers)


def test_typing_reaches_the_guest_from_any_viewer_and_ends_with_it(vm: Vm) -> None:
    first, second = vm.talk(), vm.talk()
    with first.connection, second.connection:
        for talk in (first, second):
            stream = talk.request("console", replay=0)
            talk.connection.sendall(frames.pack(frames.DATA, stream, b"hi"))
            talk.connection.sendall(frames.pack(frames.EOF, stream))
            talk.connection.sendall(frames.pack(frames.DATA, stream, b"never"))
            talk.take(stream, 10, frames.EOF)
        talk.ask("status")
        assert vm.typed == b"hihi"
    eventually(lambda: not vm.server.clients)


def test_viewers_that_vanish_in_the_middle_are_forgotten(vm: Vm) -> None:
    for _ in range(20):
        talk = vm.talk()
        talk.request("watch")
        talk.request("console", replay=100)
        talk.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
        talk.connection.close()
        vm.say(b"x" * 100_000)
        vm.do(lambda: vm.server.status(vm.current()))
    eventually(lambda: not vm.server.clients)
    with vm.talk().connection as connection:
        assert Talk(connection).ask("status")["name"] == "web-1"


def test_a_replay_is_the_end_of_the_log_and_says_how_long_it_is(vm: Vm) -> None:
    vm.say(b"a" * 3000 + b"end")
    talk = vm.talk()
    with talk.connection:
        stream = talk.request("console", replay=5)
        assert talk.take(stream).payload == b'{"replay":5}'
        assert talk.take(stream).payload == b"aaend"
