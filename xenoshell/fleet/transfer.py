"""Send one blob to a host: the segments it is missing, over as many channels as the round trip makes worth while.

The helper answers every segment once it is verified and on disk; only such segments count as progress, and after an
interruption at any point the next `send_blob` sends the others only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from xenoshell.fleet.channel import FIRST_TRANSFER, Channel, Inbox, answer, error_of
from xenoshell.wire import frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.codec import CodecError, decode, encode, loads
from xenoshell.wire.frames import Frame
from xenoshell.wire.values import BlobState, Recipe

if TYPE_CHECKING:
    from xenoshell.fleet.link import HostLink

#: sshd's window (CHAN_TCP_WINDOW_DEFAULT): a channel moves at most that much a round trip.
WINDOW = 2 << 20
#: Bytes on their way in one channel: its window, and enough behind it that the window is never empty.
IN_FLIGHT = WINDOW + (1 << 20)
MAX_CHANNELS = 4
#: Under this round trip (milliseconds) one channel is never held up by its window: 2 MiB each 5 ms are 400 MiB/s.
NEAR_MS = 5.0
#: A channel that moves more than this share of its window a round trip is held up by it; another one helps.
WINDOW_BOUND = 0.4
#: How often one segment is sent again after it arrived damaged.
RESENDS = 3
#: Commits that may find the file wrong and ask for segments again.
ROUNDS = 3
#: A link slower than this (bytes a second) is not told from a dead one.
SLOWEST = 16 << 10

_INDEX = struct.Struct(">I")


class SegmentSource(Protocol):
    """Where packed segments come from."""

    async def segment(self, index: int) -> bytes:
        """The packed bytes of one segment of the recipe."""


async def send_blob(
    link: HostLink,
    source: SegmentSource,
    recipe: Recipe,
    on_progress: Callable[[int, int], None],
    *,
    stall_s: float = 60.0,
) -> int:
    """Make the host hold ``recipe.blob``. Returns the bytes sent (packed; what was sent again included).

    ``on_progress(done, needed)`` counts packed bytes of the segments that were missing at the start.

    Raises `Failure`: busy, disk-full, corrupt-segment, corrupt-image, connection-lost, timeout (nothing was confirmed
    for ``stall_s`` seconds, or longer where a slow link explains it). Cancelled or failed, the host keeps what it
    acknowledged.
    """
    name = link.host.name
    answered = await link.request("blob.begin", timeout_s=120, recipe=encode(recipe))
    try:
        state = decode(BlobState, answered)
    except CodecError as error:
        raise Failure("protocol", f"{name}: the answer to blob.begin is malformed: {error}") from error
    if state.held:
        on_progress(0, 0)
        return 0
    if not _some_of(state.missing, len(recipe.segments)) or not FIRST_TRANSFER <= state.transfer < 1 << 32:
        raise Failure("protocol", f"{name}: the answer to blob.begin names what there is not: {str(answered)[:200]}")
    sending = _Sending(link, source, recipe, state, on_progress=on_progress, stall_s=stall_s)
    on_progress(0, sending.needed)
    missing = state.missing
    for _ in range(ROUNDS):
        if missing:
            await sending.send(missing)
        # The host reads the whole file once more: slow disks do 20 MB/s.
        committed = await link.request("blob.commit", timeout_s=120 + recipe.size / 20e6, transfer=state.transfer)
        if "blob" in committed:
            return sending.sent
        missing = sending.again(committed)
    raise Failure("corrupt-image", f"{name}: blob {recipe.blob[:12]} was sent {ROUNDS} times and never verified there")


def channels_wanted(rtt_ms: float, bytes_left: int) -> int:
    """How many channels to begin with: one where the round trip is short or there is little to send, else two."""
    return 1 if rtt_ms < NEAR_MS or bytes_left <= WINDOW else 2


def window_bound(rate: float, rtt_ms: float, channels: int) -> bool:
    """Whether ``rate`` (bytes a second over all ``channels``) is near what their windows allow at this round trip."""
    return rtt_ms >= NEAR_MS and rate * rtt_ms / 1000 > WINDOW_BOUND * WINDOW * channels


class _Sending:
    """One blob on its way: what is still to be sent, what was acknowledged, and by when the next must be."""

    def __init__(
        self,
        link: HostLink,
        source: SegmentSource,
        recipe: Recipe,
        state: BlobState,
        *,
        on_progress: Callable[[int, int], None],
        stall_s: float,
    ) -> None:
        self.sent = 0
        self.needed = sum(recipe.segments[i].packed for i in set(state.missing))
        self._link = link
        self._source = source
        self._recipe = recipe
        self._transfer = state.transfer
        self._on_progress = on_progress
        self._stall_s = stall_s
        self._queue: deque[int] = deque()
        self._done = 0
        self._resends: dict[int, int] = {}
        self._flying = 0
        self._channels = 0
        self._began = 0.0
        self._acknowledged = 0
        self._limit: asyncio.Timeout | None = None
        self._group: asyncio.TaskGroup | None = None
        self._watching: asyncio.Task[None] | None = None

    def again(self, committed: dict[str, object]) -> tuple[int, ...]:
        """The segments that a commit found wrong; they count as not done."""
        missing = committed.get("missing")
        count = len(self._recipe.segments)
        if not isinstance(missing, list) or not missing or not _some_of(missing, count):
            raise Failure("protocol", f"{self._link.host.name}: the answer to blob.commit is neither blob nor missing")
        self._done = max(0, self._done - sum(self._recipe.segments[i].packed for i in missing))
        self._on_progress(self._done, self.needed)
        return tuple(missing)

    async def send(self, missing: tuple[int, ...]) -> None:
        """Send segments until each is acknowledged."""
        loop = asyncio.get_running_loop()
        self._queue = deque(missing)
        self._began = loop.time()
        self._acknowledged = 0
        left = sum(self._recipe.segments[i].packed for i in missing)
        try:
            async with asyncio.timeout(self._stall_s) as self._limit:
                while self._queue:  # more than once only if a channel died under its segments
                    async with asyncio.TaskGroup() as self._group:
                        self._watching = self._group.create_task(self._watch_link())
                        for _ in range(channels_wanted(self._link.rtt_ms, left)):
                            self._add_channel()
        except TimeoutError:
            raise Failure(
                "timeout",
                f"{self._link.host.name}: no segment of blob {self._recipe.blob[:12]} was acknowledged for "
                f"{self._patience():.0f} s ({self._done} of {self.needed} bytes are there)",
            ) from None
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._limit = self._group = self._watching = None

    async def _watch_link(self) -> None:
        """End everything when the link ends, whatever is waited for."""
        raise await self._link.control.ended()

    def _add_channel(self) -> None:
        if self._group is not None:
            self._channels += 1
            self._group.create_task(self._run_channel())

    async def _run_channel(self) -> None:
        try:
            await self._use_channel()
        finally:
            self._channels -= 1
            if self._channels == 0 and self._watching is not None:
                self._watching.cancel()

    async def _use_channel(self) -> None:
        """One channel's part: as many segments in flight as its window takes, until there are no more."""
        channel = await self._link.extra_channel()
        if channel is None:
            channel = self._link.control
        flying: dict[int, int] = {}
        try:
            inbox = channel.open(self._transfer)
        except Failure:
            if channel.shared and self._link.failure is None:
                return  # no further channels are granted, and another task has the control channel already
            raise
        try:
            await self._exchange(channel, inbox, flying)
        except Failure:
            # A channel that ended while the connection lives: the others, or a new one, send what it had in flight.
            if channel.failure is None or self._link.failure is not None or channel.shared:
                raise
        finally:
            self._flying -= sum(flying.values())
            self._queue.extendleft(sorted(flying, reverse=True))
            channel.release(inbox)
            if not channel.shared:
                channel.close()

    async def _exchange(self, channel: Channel, inbox: Inbox, flying: dict[int, int]) -> None:
        while True:
            while self._queue and self._has_room(flying):
                index = self._queue.popleft()
                flying[index] = 0
                packed = await self._source.segment(index)
                flying[index] = len(packed)
                self._flying += len(packed)
                await channel.send(frames.SEGMENT, self._transfer, _INDEX.pack(index) + packed)
                self.sent += len(packed)
            if not flying:
                return
            await self._answered(await inbox.take_any(), flying)

    def _has_room(self, flying: dict[int, int]) -> bool:
        """At least two segments, and no more bytes than fill the window or (on a slow link) than go in four seconds."""
        if len(flying) < 2:
            return True
        limit = IN_FLIGHT if self._acknowledged == 0 else min(IN_FLIGHT, self._rate() * 4 / max(1, self._channels))
        return sum(flying.values()) < limit

    async def _answered(self, frame: Frame, flying: dict[int, int]) -> None:
        if frame.type == frames.ERROR:
            await self._refused(frame, flying)
            return
        index = answer(self._link.host.name, "a segment", frame).get("index")
        size = flying.pop(index, None) if isinstance(index, int) else None
        if size is None:
            return  # a segment that was acknowledged before
        self._flying -= size
        self._acknowledged += size
        self._done = min(self.needed, self._done + size)
        self._on_progress(self._done, self.needed)
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._patience())
        self._grow()

    async def _refused(self, frame: Frame, flying: dict[int, int]) -> None:
        failure = error_of(frame)
        failure.message = f"{self._link.host.name}: {failure.message}"
        index = _index(frame)
        size = flying.pop(index, None) if index is not None else None
        if failure.cause != "corrupt-segment" or index is None or size is None:
            raise failure
        self._flying -= size
        expected = self._recipe.segments[index]
        packed = await self._source.segment(index)
        if hashlib.sha256(packed).hexdigest() != expected.sha256:
            raise Failure(
                "corrupt-image", f"segment {index} of blob {self._recipe.blob[:12]} is damaged on this machine"
            )
        self._resends[index] = self._resends.get(index, 0) + 1
        if self._resends[index] > RESENDS:
            raise failure
        self._queue.appendleft(index)

    def _grow(self) -> None:
        """Open another channel when those there are send as fast as their windows allow."""
        if (
            self._channels < MAX_CHANNELS
            and not self._link.refused
            and len(self._queue) > 2 * self._channels
            and self._acknowledged > WINDOW * self._channels
            and window_bound(self._rate(), self._link.rtt_ms, self._channels)
        ):
            self._add_channel()

    def _rate(self) -> float:
        """Bytes acknowledged a second, since the beginning."""
        return self._acknowledged / max(asyncio.get_running_loop().time() - self._began, 0.001)

    def _patience(self) -> float:
        """Seconds that the next acknowledgement may take: more than ``stall_s`` where the line is known to be slow."""
        if not self._acknowledged:
            return self._stall_s
        return max(self._stall_s, min(2 * self._flying / self._rate(), self._flying / SLOWEST))


def _some_of(indices: Sequence[object], count: int) -> bool:
    """Whether these are different indices of ``count`` segments: a host must not have one sent without end."""
    return all(type(i) is int and 0 <= i < count for i in indices) and len(set(indices)) == len(indices)


def _index(frame: Frame) -> int | None:
    """The segment that an ERROR is about."""
    with contextlib.suppress(CodecError):
        index = loads(frame.payload).get("index")
        return index if isinstance(index, int) else None
    return None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report of several channels: all see the same lost connection, one may know a better reason."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    ranked = sorted(leaves, key=lambda e: isinstance(e, Failure) and e.cause == "connection-lost")
    return ranked[0]
