"""Requests, answers and streams over one channel, in any pieces; nothing waits for ever or grows without bound."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import eventually_async
from xenoshell.fleet.channel import STREAM_LIMIT, Channel
from xenoshell.fleet.link import ByteStream
from xenoshell.wire import frames
from xenoshell.wire.causes import Failure


class Wire:
    """The other end of a channel: what was sent, and whether it may send."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.reader = frames.FrameReader()
        self.sent: list[frames.Frame] = []
        self.paused = False
        self.closed = False
        channel.attach(self)

    def write(self, data: bytes) -> None:
        self.sent += self.reader.feed(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def answer(self, stream: int, value: object, type_: int = frames.RESPONSE) -> bytes:
        return frames.pack(type_, stream, json.dumps(value).encode())


def channel(shared: bool = True) -> tuple[Channel, Wire]:
    made = Channel("ams-1", shared=shared)
    return made, Wire(made)


async def asked(wire: Wire, count: int) -> None:
    await eventually_async(lambda: len(wire.sent) >= count, 5, f"{count} requests")


async def test_answers_find_their_requests_in_any_order() -> None:
    both, wire = channel()
    tasks = [asyncio.create_task(both.request("vm.list", timeout_s=5, n=n)) for n in range(3)]
    await asked(wire, 3)
    for frame in reversed(wire.sent):
        request = json.loads(frame.payload)
        assert request["verb"] == "vm.list"
        both.received(wire.answer(frame.stream, {"n": request["n"]}))
    assert await asyncio.gather(*tasks) == [{"n": 0}, {"n": 1}, {"n": 2}]


@given(cuts=st.lists(st.integers(0, 200), max_size=20), noise=st.binary(max_size=100))
async def test_frames_survive_any_cut_and_noise_before_the_preamble(cuts: list[int], noise: bytes) -> None:
    preamble = b"0123456789abcdef"
    both = Channel("ams-1", preamble=preamble)
    wire = Wire(both)
    greeting = both.open(0)
    data = noise + preamble + wire.answer(0, {"hello": 1}) + frames.pack(frames.EOF, 0)
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    for start, end in pairwise(edges):
        both.received(data[start:end])
    assert json.loads((await greeting.take()).payload) == {"hello": 1}
    assert (await greeting.take()).type == frames.EOF


async def test_an_error_is_raised_with_its_cause_and_remedy() -> None:
    both, wire = channel()
    task = asyncio.create_task(both.request("vm.start", timeout_s=5))
    await asked(wire, 1)
    error = {"cause": "no-memory", "message": "1 GiB is free", "remedy": "stop something"}
    both.received(wire.answer(wire.sent[0].stream, error, frames.ERROR))
    with pytest.raises(Failure) as caught:
        await task
    assert (caught.value.cause, caught.value.message, caught.value.remedy) == tuple(error.values())


async def test_a_cause_of_a_newer_host_is_not_lost() -> None:
    both, wire = channel()
    task = asyncio.create_task(both.request("vm.start", timeout_s=5))
    await asked(wire, 1)
    both.received(wire.answer(1, {"cause": "no-gpu", "message": "none left", "remedy": "wait"}, frames.ERROR))
    with pytest.raises(Failure) as caught:
        await task
    assert caught.value.cause == "internal" and "no-gpu: none left" in caught.value.message


async def test_silence_times_out_and_the_late_answer_harms_nobody() -> None:
    both, wire = channel()
    with pytest.raises(Failure) as caught:
        await both.request("facts", timeout_s=0.05)
    assert caught.value.cause == "timeout" and "facts" in caught.value.message and "ams-1" in caught.value.message
    both.received(wire.answer(wire.sent[0].stream, {"late": True}))
    task = asyncio.create_task(both.request("facts", timeout_s=5))
    await asked(wire, 2)
    both.received(wire.answer(wire.sent[1].stream, {"late": False}))
    assert await task == {"late": False}


@pytest.mark.parametrize(
    "garbage", [b"-bash: python3: oops, and more than a header", b"XS\x09\x01" + bytes(8), b"XS\x01\x63" + bytes(8)]
)
async def test_garbage_ends_the_channel_for_all_and_is_shown(garbage: bytes) -> None:
    both, wire = channel()
    tasks = [asyncio.create_task(both.request("facts", timeout_s=5)) for _ in range(2)]
    await asked(wire, 2)
    both.received(garbage)
    for task in tasks:
        with pytest.raises(Failure) as caught:
            await task
        assert caught.value.cause == "protocol" and repr(garbage[:10])[2:-1] in caught.value.message
    assert wire.closed
    with pytest.raises(Failure):
        await both.request("facts", timeout_s=5)


@given(st.binary(max_size=300))
async def test_no_bytes_crash_a_channel(data: bytes) -> None:
    both, _ = channel()
    inbox = both.open()
    both.received(data)
    both.received(data)
    assert both.failure is None or both.failure.cause == "protocol"
    both.close()
    with pytest.raises(Failure):
        while True:
            await inbox.take()


async def test_what_arrived_before_the_end_is_still_read() -> None:
    both, wire = channel()
    inbox = both.open()
    both.received(frames.pack(frames.DATA, inbox.stream, b"last words"))
    both.fail(Failure("connection-lost", "gone"))
    assert (await inbox.take()).payload == b"last words"
    with pytest.raises(Failure) as caught:
        await inbox.take()
    assert caught.value.cause == "connection-lost" and wire.closed


async def test_a_slow_reader_stops_a_channel_of_its_own_and_loses_nothing() -> None:
    both, wire = channel(shared=False)
    inbox = both.open()
    pieces = [bytes([n]) * (256 << 10) for n in range(8)]
    taken = []
    for piece in pieces:
        assert not wire.paused or inbox.full
        both.received(frames.pack(frames.DATA, inbox.stream, piece))
    assert wire.paused
    for _ in pieces:
        taken.append((await inbox.take()).payload)
    assert taken == pieces and inbox.dropped == 0
    assert [wire.paused] == [False]


async def test_a_slow_reader_on_a_shared_channel_loses_the_oldest_and_is_told() -> None:
    both, wire = channel(shared=True)
    inbox = both.open()
    stream = ByteStream(both, inbox, 0)
    for n in range(12):
        both.received(frames.pack(frames.DATA, inbox.stream, bytes([n]) * (256 << 10)))
    task = asyncio.create_task(both.request("facts", timeout_s=5))
    await asked(wire, 1)
    both.received(wire.answer(wire.sent[0].stream, {}))
    assert await task == {}, "a slow reader holds up others"
    both.received(frames.pack(frames.EOF, inbox.stream))
    read = b""
    while data := await stream.read():
        read += data
    note, _, rest = read.removeprefix(b"\r\n").partition(b"\r\n")
    assert len(rest) <= STREAM_LIMIT and rest.endswith(bytes([11]) * (256 << 10))
    assert note == b"[%d bytes skipped]" % (12 * (256 << 10) - len(rest))


async def test_a_flood_of_events_ends_its_stream_only() -> None:
    both, wire = channel()
    inbox = both.open()
    for _ in range(10):
        both.received(frames.pack(frames.EVENT, inbox.stream, bytes(1 << 20)))
    with pytest.raises(Failure) as caught:
        await inbox.take()
    assert caught.value.cause == "protocol" and "nobody read" in caught.value.message
    task = asyncio.create_task(both.request("facts", timeout_s=5))
    await asked(wire, 1)
    both.received(wire.answer(wire.sent[0].stream, {}))
    assert await task == {}


@pytest.mark.parametrize("kind", [frames.DATA, frames.EVENT, frames.EOF])
async def test_empty_frames_count_too(kind: int) -> None:
    """Nothing of their content is kept, but each of a million frames takes memory."""
    own, wire = channel(shared=False)
    own.received(frames.pack(kind, own.open().stream) * 5000)
    assert wire.paused, "a channel of its own is not read any more"
    both, _ = channel(shared=True)
    inbox = both.open()
    both.received(frames.pack(kind, inbox.stream) * 40_000)
    if kind == frames.DATA:
        both.received(frames.pack(frames.EOF, inbox.stream))
        assert await ByteStream(both, inbox, 0).read() == b""
        return
    with pytest.raises(Failure) as caught:
        await inbox.take()
    assert caught.value.cause == "protocol"


async def test_a_full_transport_makes_senders_wait() -> None:
    both, wire = channel()
    both.pause_writing()
    sending = asyncio.create_task(both.send(frames.SEGMENT, 7, b"x"))
    await asyncio.sleep(0)
    assert wire.sent == []
    both.resume_writing()
    await asyncio.wait_for(sending, 5)
    assert wire.sent == [frames.Frame(frames.SEGMENT, 7, b"x")]


async def test_a_sender_that_waits_is_freed_by_the_end() -> None:
    both, _ = channel()
    both.pause_writing()
    sending = asyncio.create_task(both.send(frames.SEGMENT, 7, b"x"))
    await asyncio.sleep(0)
    both.fail(Failure("connection-lost", "gone"))
    with pytest.raises(Failure):
        await asyncio.wait_for(sending, 5)
