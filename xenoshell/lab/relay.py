"""A long, thin wire in front of one sshd: a TCP relay that adds delay and limits the rate. No root needed.

Run as a file of its own, ``python -I -S relay.py HOST_DIRECTORY PORT TARGET_PORT RTT_MS UP_BPS DOWN_BPS``; standard
library only.

How it stays true to the profile. Each direction is one link that all connections share: a piece of n bytes leaves when
the link is free, occupies it for n / rate, and arrives one way (half a round trip) later. A piece is small (2 ms of the
link, 4 to 64 KiB) and connections queue for the link in turn, so a bulk transfer leaves room for the others as it does
in a router with fair queueing. The queue in front of the link is bounded (`QUEUE_S`); a connection has at most `WINDOW`
bytes on the way and not yet acknowledged, an acknowledgement taking one way back: what TCP itself would have at best.

A connection takes a handshake: the kernel accepts for us at once, so what the client says first counts as said one
round trip later.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass

#: Longest queue in front of a link, in seconds of its rate: a router's buffer of a decent access line.
QUEUE_S = 0.05
#: Bytes on the way per connection and direction: the maximum of Linux' tcp_rmem.
WINDOW = 6 << 20
#: How long a peer that has stopped reading may hold up the end of its connection, seconds.
CLOSE_S = 10.0


@dataclass(frozen=True)
class Wire:
    """What is emulated: one-way delay in seconds, rates in bytes per second (0: unlimited)."""

    one_way_s: float
    up: float
    down: float


class Link:
    """One direction of the wire, shared by all connections."""

    def __init__(self, rate: float, one_way_s: float) -> None:
        self.rate = rate
        self.one_way_s = one_way_s
        self.piece = int(min(64 << 10, max(4 << 10, rate * 0.002))) if rate else 64 << 10
        self._free_at = 0.0
        self._turn = asyncio.Lock()

    async def depart(self, size: int, not_before: float = 0.0) -> float:
        """Put ``size`` bytes on the link, once it is this caller's turn and the queue has room. Returns the time
        (of the loop's clock) at which they arrive at the other end."""
        if not self.rate:
            return max(asyncio.get_running_loop().time(), not_before) + self.one_way_s
        clock = asyncio.get_running_loop().time
        async with self._turn:  # a Lock is fair: first come, first served
            ahead = self._free_at - clock() - QUEUE_S
            if ahead > 0:
                await asyncio.sleep(ahead)
            start = max(clock(), self._free_at, not_before)
            self._free_at = start + size / self.rate
            return self._free_at + self.one_way_s


class _Window:
    """How many bytes of one direction of one connection may be on the way."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._more = asyncio.Event()

    async def take(self, size: int) -> None:
        while self._left < size:
            self._more.clear()
            await self._more.wait()
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
        self._more.set()


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link, not_before: float = 0.0
) -> None:
    """Carry one direction of one connection until its end, which arrives as late as data would.

    Raises an `ExceptionGroup` of `OSError` when either side breaks.
    """
    window = _Window(WINDOW)
    arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()  # bounded by the window
    async with asyncio.TaskGroup() as group:
        group.create_task(_send(reader, arriving, window, link, not_before))
        group.create_task(_deliver(arriving, writer, window, link))


async def _send(
    reader: asyncio.StreamReader,
    arriving: asyncio.Queue[tuple[float, bytes]],
    window: _Window,
    link: Link,
    not_before: float,
) -> None:
    data = b"?"
    while data:
        data = await reader.read(link.piece)
        await window.take(len(data))
        arriving.put_nowait((await link.depart(len(data), not_before), data))


async def _deliver(
    arriving: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, window: _Window, link: Link
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        at, data = await arriving.get()
        if (wait := at - loop.time()) > 0:
            await asyncio.sleep(wait)
        if not data:
            if writer.can_write_eof():
                writer.write_eof()
            return
        writer.write(data)
        await writer.drain()
        loop.call_later(link.one_way_s, window.give, len(data))


class Relay:
    """The relay of one host."""

    def __init__(self, target_port: int, wire: Wire) -> None:
        self._target_port = target_port
        self._wire = wire
        self._up = Link(wire.up, wire.one_way_s)
        self._down = Link(wire.down, wire.one_way_s)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> int:
        """Listen on ``port`` of 127.0.0.1 (0: any). Returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, limit=256 << 10, backlog=512)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
            await _close(writer)
        except* OSError:
            pass  # the client or the server broke the connection: the other one's end of it is cut below
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one_way = self._wire.one_way_s
        accepted = asyncio.get_running_loop().time()
        _no_delay(writer)
        await asyncio.sleep(3 * one_way)  # SYN, SYN-ACK, ACK: then the server knows of the connection
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port, limit=256 << 10)
        except OSError:  # nobody listens: the client hears of it one way later
            await asyncio.sleep(one_way)
            raise
        try:
            _no_delay(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(carry(reader, far_writer, self._up, accepted + 2 * one_way))
                group.create_task(carry(far_reader, writer, self._down))
            await _close(far_writer)
        finally:
            far_writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close once what was written has gone out (`CLOSE_S` seconds at most)."""
    writer.close()
    async with asyncio.timeout(CLOSE_S):
        await writer.wait_closed()


def _no_delay(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.transport.set_write_buffer_limits(high=128 << 10)


async def _serve(port: int, target_port: int, wire: Wire) -> None:
    relay = Relay(target_port, wire)
    await relay.start(port)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await relay.close()


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM. ``arguments`` are those named at the top; the directory only marks whose process it is."""
    _, port, target_port, rtt_ms, up_bps, down_bps = arguments
    asyncio.run(_serve(int(port), int(target_port), Wire(float(rtt_ms) / 2000, float(up_bps) / 8, float(down_bps) / 8)))


if __name__ == "__main__":
    main(sys.argv[1:])
