"""Frames: any cut of the stream gives the same frames; anything else is an error that shows the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.wire import frames
from xenoshell.wire.frames import Frame, FrameReader, WireError, pack

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(sorted(frames.TYPES)), st.integers(0, 2**32 - 1), st.binary(max_size=50)),
    max_size=6,
)
PREAMBLE = bytes(range(16))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in [*sizes, len(data)]:
        pieces.append(data[at : at + size])
        at += size
    return pieces


@given(FRAMES, st.lists(st.integers(0, 20)))
def test_frames_survive_any_cut_of_the_stream(sent: list[Frame], sizes: list[int]) -> None:
    reader = FrameReader()
    stream = b"".join(pack(*frame) for frame in sent)
    assert [frame for piece in cut(stream, sizes) for frame in reader.feed(piece)] == sent
    assert reader.pending == 0


@given(FRAMES, st.binary(max_size=300).filter(lambda noise: PREAMBLE not in noise), st.integers(1, 7))
def test_noise_before_the_preamble_is_kept_and_skipped(sent: list[Frame], noise: bytes, step: int) -> None:
    reader = FrameReader(PREAMBLE)
    stream = noise + PREAMBLE + b"".join(pack(*frame) for frame in sent)
    got = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert got == sent and reader.synchronised and reader.noise == noise


def test_too_much_noise_is_an_error_that_shows_it() -> None:
    reader = FrameReader(PREAMBLE)
    with pytest.raises(WireError, match=r"no helper in the first 65536 bytes.*welcome"):
        for _ in range(70):
            reader.feed(b"welcome " * 128)


@given(st.binary(min_size=12, max_size=100).filter(lambda data: not data.startswith(b"XS")))
def test_what_is_no_frame_is_shown(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        FrameReader().feed(data)
    assert caught.value.found == data[:256]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (frames.HEADER.pack(b"XS", 2, 1, 1, 0), "version 2"),
        (frames.HEADER.pack(b"XS", 1, 99, 1, 0), "type 99"),
        (frames.HEADER.pack(b"XS", 1, 1, 1, frames.MAX_PAYLOAD + 1), "over the limit"),
    ],
)
def test_strange_headers_are_refused(header: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        FrameReader().feed(header)


def test_no_payload_over_the_limit_is_packed() -> None:
    with pytest.raises(WireError, match="over the limit"):
        pack(frames.DATA, 1, bytes(frames.MAX_PAYLOAD + 1))
