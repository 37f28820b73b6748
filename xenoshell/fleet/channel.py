"""Frames both ways over one channel of a connection: requests with their answers, and streams. Knows nothing of SSH."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from xenoshell.wire import frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.codec import CodecError, decode, dumps, loads
from xenoshell.wire.frames import Frame, FrameReader, WireError
from xenoshell.wire.remedies import REMEDIES
from xenoshell.wire.values import ErrorValue

#: Bytes one stream may hold for a slow reader. A channel of its own stops reading then; a shared one drops the oldest.
STREAM_LIMIT = 1 << 20
#: Bytes of frames that must not be dropped (answers, events): a host that sends more than is read is cut off.
FLOOD_LIMIT = 8 << 20
#: What a frame takes here beside its payload (bytes): empty ones fill the memory too.
FRAME_COST = 256
#: Ids of requests stay below this; helpers give ids from here on to transfers.
FIRST_TRANSFER = 0x80000000


class Transport(Protocol):
    """What carries a channel's bytes (an SSH channel)."""

    def write(self, data: bytes) -> None:
        """Send, or queue for sending."""

    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`."""

    def resume_reading(self) -> None:
        """Deliver again."""

    def close(self) -> None:
        """Close in both directions."""


class Inbox:
    """What arrived for one stream id and was not taken yet."""

    def __init__(self, channel: Channel, stream: int) -> None:
        self.stream = stream
        self._channel = channel
        self._frames: deque[Frame] = deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._failure: Failure | None = None
        self.dropped = 0

    @property
    def full(self) -> bool:
        """Whether the reader is `STREAM_LIMIT` behind."""
        return self._held > STREAM_LIMIT

    def put(self, frame: Frame) -> None:
        """A frame arrived."""
        if self._failure is not None:
            return
        self._frames.append(frame)
        self._held += FRAME_COST + len(frame.payload)
        while self.full and self._channel.shared and self._frames[0].type == frames.DATA:
            oldest = self._frames.popleft()
            self._held -= FRAME_COST + len(oldest.payload)
            self.dropped += len(oldest.payload)
        if self._held > FLOOD_LIMIT:
            self._frames.clear()
            self._held = 0
            self.fail(
                Failure("protocol", f"{self._channel.name}: over {FLOOD_LIMIT >> 20} MiB arrived that nobody read")
            )
        self._arrived.set()

    def fail(self, failure: Failure) -> None:
        """Nothing will arrive any more."""
        self._failure = self._failure or failure
        self._arrived.set()

    async def take(self) -> Frame:
        """The next frame. An ERROR frame is raised as its `Failure`, and so is the end of the channel."""
        frame = await self.take_any()
        if frame.type == frames.ERROR:
            raise error_of(frame)
        return frame

    async def take_any(self) -> Frame:
        """The next frame, of whatever type. Raises the channel's `Failure` at its end."""
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._held -= FRAME_COST + len(frame.payload)
        self._channel.relieved()
        return frame


class Channel:
    """One channel. ``name`` is the host's, for messages; ``shared`` if requests and streams of many users are on it."""

    def __init__(self, name: str, *, preamble: bytes | None = None, shared: bool = True) -> None:
        self.name = name
        self.shared = shared
        self.reader = FrameReader(preamble)
        self.failure: Failure | None = None
        self._end = asyncio.Event()
        self.on_failure: Callable[[Failure], None] | None = None
        self._transport: Transport | None = None
        self._next = 1
        self._inboxes: dict[int, Inbox] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False

    # ------------------------------------------------------------ from the transport

    def attach(self, transport: Transport) -> None:
        """The transport is there."""
        self._transport = transport

    def received(self, data: bytes) -> None:
        """Bytes arrived. Anything but frames ends the channel with `protocol` and the bytes that broke it."""
        try:
            arrived = self.reader.feed(data)
        except WireError as error:
            self.fail(Failure("protocol", f"{self.name}: {error}"))
            return
        for frame in arrived:
            inbox = self._inboxes.get(frame.stream)
            if inbox is not None:
                inbox.put(frame)
            elif frame.stream == 0 and frame.type == frames.ERROR:
                self.fail(error_of(frame))
            # Else a late answer to a request that was given up: nobody waits for it.
        self._balance()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The transport's buffer has room."""
        self._writable.set()

    def fail(self, failure: Failure) -> None:
        """End the channel: everyone who waits on it gets ``failure``. The first failure stays."""
        if self.failure is not None:
            return
        self.failure = failure
        self._end.set()
        self._writable.set()
        for inbox in self._inboxes.values():
            inbox.fail(failure)
        if self._transport is not None:
            self._transport.close()
        if self.on_failure is not None:
            self.on_failure(failure)

    # ------------------------------------------------------------ for its users

    def close(self) -> None:
        """End the channel from this side."""
        self.on_failure = None
        self.fail(Failure("connection-lost", f"{self.name}: the channel was closed"))

    async def ended(self) -> Failure:
        """Wait for the channel's end; why it ended."""
        await self._end.wait()
        assert self.failure is not None
        return self.failure

    def open(self, stream: int | None = None) -> Inbox:
        """Register for a stream's frames: a fresh id, or a given one (a transfer's, or 0 for the helper's greeting)."""
        if self.failure is not None:
            raise self.failure
        if stream is None:
            stream = self._next
            self._next = stream + 1 if stream + 1 < FIRST_TRANSFER else 1
        if stream in self._inboxes:
            raise Failure("internal", f"{self.name}: stream {stream} is in use on this channel")
        inbox = self._inboxes[stream] = Inbox(self, stream)
        return inbox

    def release(self, inbox: Inbox) -> None:
        """Forget a stream; what still arrives for it is dropped."""
        self._inboxes.pop(inbox.stream, None)
        self._balance()

    def post(self, type_: int, stream: int, payload: bytes = b"") -> None:
        """Send a small frame without waiting for room."""
        if self.failure is not None:
            raise self.failure
        if self._transport is None:
            raise Failure("internal", f"{self.name}: the channel is not open yet")
        try:
            self._transport.write(frames.pack(type_, stream, payload))
        except OSError as error:  # the other side closed it just now, and the end has not been told yet
            raise Failure("connection-lost", f"{self.name}: the channel is closing: {error}") from error

    async def send(self, type_: int, stream: int, payload: bytes) -> None:
        """Send a frame; wait first while the transport's buffer is full."""
        await self._writable.wait()
        self.post(type_, stream, payload)

    def ask(self, verb: str, params: dict[str, Any]) -> Inbox:
        """Send a request; its answers arrive in the inbox, which the caller must `release`."""
        inbox = self.open()
        self.post(frames.REQUEST, inbox.stream, dumps({**params, "verb": verb}))
        return inbox

    async def request(self, verb: str, *, timeout_s: float, **params: Any) -> dict[str, Any]:
        """One request and its one answer. Raises `Failure`: what the host answered, connection-lost, or timeout."""
        inbox = self.ask(verb, params)
        try:
            async with asyncio.timeout(timeout_s):
                return answer(self.name, verb, await inbox.take())
        except TimeoutError:
            raise Failure("timeout", f"{self.name}: no answer to {verb} within {timeout_s:g} s") from None
        finally:
            self.release(inbox)

    def relieved(self) -> None:
        """An inbox was read from."""
        if self._paused:
            self._balance()

    def _balance(self) -> None:
        if self.shared or self._transport is None or self.failure is not None:
            return
        full = any(inbox.full for inbox in self._inboxes.values())
        if full and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        elif not full and self._paused:
            self._paused = False
            self._transport.resume_reading()


def answer(name: str, verb: str, frame: Frame) -> dict[str, Any]:
    """The JSON of a RESPONSE. Raises `Failure` (protocol) for another frame or malformed JSON."""
    if frame.type != frames.RESPONSE:
        raise Failure("protocol", f"{name}: frame type {frame.type} instead of the answer to {verb}")
    try:
        return loads(frame.payload)
    except CodecError as error:
        raise Failure("protocol", f"{name}: the answer to {verb} is {error}") from error


def error_of(frame: Frame) -> Failure:
    """The failure that an ERROR frame reports. A newer host's cause that this side does not know becomes `internal`."""
    try:
        value = decode(ErrorValue, loads(frame.payload))
    except CodecError as error:
        return Failure("protocol", f"malformed error report: {error}")
    if value.cause not in REMEDIES:
        return Failure("internal", f"{value.cause}: {value.message}", value.remedy or None)
    return Failure(value.cause, value.message, value.remedy or None)
