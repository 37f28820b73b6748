"""The client's side of a helper, by hand: the real stub under a real shell, frames written and read one by one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from xenoshell.fleet.bundle import bundle, stub
from xenoshell.wire import codec, frames, tree
from xenoshell.wire.frames import Frame
from xenoshell.wire.values import BLOCK, BLOCKS_PER_NODE, BlobState, HostFacts, Recipe, Segment

DEADLINE_S = 20.0


class Peer:
    """One channel to a helper."""

    def __init__(self, read_fd: int, write: Callable[[bytes], object], preamble: bytes | None = None) -> None:
        self._read_fd = read_fd
        self.write = write
        self._reader = frames.FrameReader(preamble)
        self._queue: list[Frame] = []
        self._next = 0

    @property
    def noise(self) -> bytes:
        return self._reader.noise

    def send(self, type_: int, stream: int, payload: bytes = b"") -> None:
        self.write(frames.pack(type_, stream, payload))

    def ask(self, verb: str, **params: Any) -> int:
        """Send a request; return its stream id."""
        self._next += 1
        self.send(frames.REQUEST, self._next, codec.dumps(dict(params, verb=verb)))
        return self._next

    def next(self, timeout_s: float = DEADLINE_S) -> Frame | None:
        """The next frame; None at the end of the stream."""
        deadline = time.monotonic() + timeout_s
        while not self._queue:
            if not select.select([self._read_fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no frame within {timeout_s} s")
            data = os.read(self._read_fd, 1 << 16)
            if not data:
                return None
            self._queue += self._reader.feed(data)
        return self._queue.pop(0)

    def answer(self, stream: int, timeout_s: float = DEADLINE_S) -> tuple[int, dict[str, Any]]:
        """Type and JSON of the next frame of a stream; frames of other streams are dropped."""
        while True:
            frame = self.next(timeout_s)
            assert frame is not None, "the helper hung up"
            if frame.stream == stream:
                return frame.type, json.loads(frame.payload or b"{}")

    def request(self, verb: str, **params: Any) -> dict[str, Any]:
        """The value of a RESPONSE; an ERROR is an `AssertionError` with its text."""
        type_, value = self.answer(self.ask(verb, **params))
        assert type_ == frames.RESPONSE, value
        return value

    def refused(self, verb: str, **params: Any) -> dict[str, Any]:
        """The value of the ERROR that a request gets."""
        type_, value = self.answer(self.ask(verb, **params))
        assert type_ == frames.ERROR, value
        return value

    def send_segment(self, transfer: int, index: int, packed: bytes) -> tuple[int, dict[str, Any]]:
        self.send(frames.SEGMENT, transfer, struct.pack(">I", index) + packed)
        return self.answer(transfer)


class Helper(Peer):
    """A helper process and its first channel."""

    def __init__(self, process: subprocess.Popen[bytes], preamble: bytes) -> None:
        assert process.stdin is not None and process.stdout is not None
        super().__init__(process.stdout.fileno(), self._write, preamble)
        self.process = process

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def hello(self) -> HostFacts:
        """The facts that come unasked. A host without the rest of the program is brought it, as by a client."""
        type_, value = self.answer(0)
        assert type_ == frames.RESPONSE, value
        facts = codec.decode(HostFacts, value)
        if not facts.library:
            self.request("library", rest=base64.b64encode(bundle().rest).decode())
        return facts

    def end(self, timeout_s: float = DEADLINE_S) -> int:
        """End its input as a closed connection does; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_helper(
    state: Path,
    python: str = "python3",
    shell: tuple[str, ...] = ("sh", "-c"),
    before: str = "",
    send_bundle: bool = True,
    **options: Any,
) -> Iterator[Helper]:
    """A helper behind its stub, started by ``shell`` as sshd does, for the length of a ``with`` block."""
    preamble = os.urandom(16)
    command = before + stub(bundle(), preamble, str(state)).replace("python3 ", python + " ", 1)
    process = subprocess.Popen(
        [*shell, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **options
    )
    helper = Helper(process, preamble)
    try:
        if send_bundle:
            helper.write(bundle().packed)
        yield helper
    finally:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            assert process.stdout is not None
            process.stdout.close()
            if process.stderr is not None:
                process.stderr.close()


@contextlib.contextmanager
def further_channel(facts: HostFacts) -> Iterator[Peer]:
    """A channel over the helper's socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(facts.channel)
        yield Peer(connection.fileno(), connection.sendall)


# ---------------------------------------------------------------- blobs


def recipe_for(data: bytes, codec_: str = "zlib", raw: int = BLOCK * BLOCKS_PER_NODE) -> tuple[Recipe, list[bytes]]:
    """A recipe that carries every block of ``data`` that is not zeros, and its packed segments of ``raw`` bytes."""
    blocks = -(-len(data) // BLOCK)
    padded = data.ljust(blocks * BLOCK, b"\0")
    literal = [b for b in range(blocks) if padded[b * BLOCK : (b + 1) * BLOCK] != bytes(BLOCK)]
    runs = tuple((b, 1, 0, i) for i, b in enumerate(literal))
    stream = b"".join(padded[b * BLOCK : (b + 1) * BLOCK] for b in literal)
    packed, segments = [], []
    for at in range(0, len(stream), raw):
        part = stream[at : at + raw]
        pack = zstandard.compress(part) if codec_ == "zstd" else zlib.compress(part)
        packed.append(pack)
        segments.append(
            Segment(hashlib.sha256(pack).hexdigest(), len(pack), hashlib.sha256(part).hexdigest(), len(part))
        )
    return Recipe(tree.root_of_bytes(data), len(data), codec_, (), runs, tuple(segments)), packed


def begin(peer: Peer, recipe: Recipe) -> BlobState:
    return codec.decode(BlobState, peer.request("blob.begin", recipe=codec.encode(recipe)))


def transfer(peer: Peer, data: bytes, codec_: str = "zlib") -> str:
    """Bring a blob to the host; its digest."""
    recipe, packed = recipe_for(data, codec_)
    state = begin(peer, recipe)
    if not state.held:
        for index in state.missing:
            assert peer.send_segment(state.transfer, index, packed[index]) == (frames.RESPONSE, {"index": index})
        assert peer.request("blob.commit", transfer=state.transfer) == {"blob": recipe.blob}
    return recipe.blob
