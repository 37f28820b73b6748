"""The requests that go on for a while: a VM's seed coming in, a console, logs, and the watch over all VMs.

Relays have no buffers of their own: what the client does not read stays with the supervisor, which bounds it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Set

from xenoshell.host.streams import Session, Stream
from xenoshell.host.vmdir import VmDir
from xenoshell.host.vms import Vms
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import VmSpec

if TYPE_CHECKING:
    from xenoshell.host.params import Params

_CONNECT_S = 5.0
_INPUT_S = 5.0  # how long a guest's console may refuse input before its viewer is told
_SCAN_S = 1.0
_GUARDIAN_S = 2.0  # how long a guardian gets to bring its supervisor back


class Upload(Stream):
    """A vm.create: the spec is here, the seed comes as DATA until EOF."""

    def __init__(self, vms: Vms, session: Session, stream: int, params: Params, work: Callable[..., None]) -> None:
        self._spec = codec.decode(VmSpec, params.get("spec"))
        self._vms, self._session, self._stream, self._work = vms, session, stream, work
        self._seed = bytearray()

    def start(self) -> None:
        """Create at once when no seed follows."""
        if self._spec.seed_size == 0:
            self.eof()

    def data(self, payload: bytes) -> None:
        if len(self._seed) + len(payload) > self._spec.seed_size:
            raise Failure("bad-request", "the seed is longer than the %d bytes announced" % self._spec.seed_size)
        self._seed += payload

    def eof(self) -> None:
        seed = bytes(self._seed)

        def create() -> None:
            status = self._vms.create(self._spec, seed)
            self._session.end(self._stream)
            self._session.channel.respond(self._stream, status)

        if self._work is not None:
            work, self._work = self._work, None  # type: ignore[assignment]
            work(self._session, self._stream, create)

    def stop(self) -> None:
        self._seed.clear()


class Relay(Stream):
    """A console or a log: frames of a supervisor, passed on under the client's stream id, and input the other way."""

    def __init__(self, vms: Vms, session: Session, stream: int, vm_id: str, request: Dict[str, Any]) -> None:
        self._vm = vms.vm(vm_id)
        self._vms, self._session, self._stream, self._request = vms, session, stream, request
        self._lock = threading.Lock()
        self._connection: Optional[socket.socket] = None
        self._stopped = False

    def run(self) -> None:
        """Relay until either side ends. Raises `Failure` for what the supervisor says, or when it dies."""
        self._vms.adopt(self._vm)
        connection = open_link(self._vm, self._request)
        with self._lock:
            if self._stopped:
                connection.close()
                return
            self._connection = connection
        try:
            self._relay(connection)
        finally:
            with self._lock:
                self._connection = None
            connection.close()

    def _relay(self, connection: socket.socket) -> None:
        reader = frames.FrameReader()
        channel = self._session.channel
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            for frame in reader.feed(data):
                if frame.type in (frames.EOF, frames.ERROR):
                    self._session.end(self._stream)
                channel.send(frame.type, self._stream, frame.payload)
                if frame.type in (frames.EOF, frames.ERROR):
                    return
        if self._stopped or not self._vm.exists():
            channel.send(frames.EOF, self._stream)
        else:
            raise Failure("connection-lost", "the supervisor of %s went away" % self._vm.id, "open it again")

    def data(self, payload: bytes) -> None:
        with self._lock:
            connection = self._connection
        if connection is None:
            return  # input before the console is there, or after its end, has nowhere to go
        try:
            connection.sendall(frames.pack(frames.DATA, 1, payload))
        except BlockingIOError:
            raise Failure("busy", "the guest does not read its console") from None
        except OSError:
            return  # the relay notices on its own

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            connection = self._connection
            if connection is not None:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return


def open_link(vm: VmDir, request: Dict[str, Any]) -> socket.socket:
    """A connection to a VM's supervisor with a request sent: reads block, writes give up. Raises `Failure`."""
    try:
        connection = vm.connect(_CONNECT_S)
    except OSError as error:
        raise Failure("not-found", "the supervisor of %s does not answer: %s" % (vm.id, error)) from None
    try:
        connection.settimeout(None)
        seconds, rest = divmod(_INPUT_S, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))
        connection.sendall(frames.pack(frames.REQUEST, 1, codec.dumps(request)))
    except OSError as error:
        connection.close()
        raise Failure("not-found", "the supervisor of %s does not answer: %s" % (vm.id, error)) from None
    return connection


class Watch(Stream):
    """Every change of every VM, those made later included; VMs whose supervisor died are adopted on the way."""

    def __init__(self, vms: Vms, session: Session, stream: int) -> None:
        self._vms, self._session, self._stream = vms, session, stream
        self._stopped = False
        self._links: Dict[int, _Link] = {}
        self._lost: Dict[str, float] = {}
        self._written: Dict[str, bytes] = {}
        self._adopting: Set[str] = set()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._lock = threading.Lock()

    def run(self) -> None:
        """Watch until the client has enough."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        self._vms.follow(self._wake)
        try:
            self._session.channel.respond(self._stream, {})
            scan = 0.0
            while not self._stopped:
                now = time.monotonic()
                if now >= scan:
                    self._scan(poll, now)
                    scan = now + _SCAN_S
                for fd, _ in poll.poll(max(0, int((scan - time.monotonic()) * 1000) + 1)):
                    if fd == self._wake_out:
                        os.read(fd, 4096)
                        scan = 0.0
                    elif fd in self._links and not self._receive(self._links[fd]):
                        poll.unregister(fd)
                        self._drop(fd)
                        scan = 0.0
            self._session.end(self._stream)
            self._session.channel.send(frames.EOF, self._stream)
        finally:
            self._vms.unfollow(self._wake)
            for fd in list(self._links):
                self._drop(fd)
            with self._lock:
                os.close(self._wake_in)
                self._wake_in = -1
            os.close(self._wake_out)

    def stop(self) -> None:
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if self._wake_in >= 0:
                os.write(self._wake_in, b"x")

    def _drop(self, fd: int) -> None:
        self._links.pop(fd).connection.close()

    def _scan(self, poll: select.poll, now: float) -> None:
        """Link up with every VM that has no link yet."""
        linked = {link.vm.id for link in self._links.values()}
        present = self._vms.ids()
        for vm_id in present:
            if vm_id in linked:
                continue
            vm = VmDir(self._vms.directory, vm_id)
            try:
                connection = open_link(vm, {"verb": "watch"})
            except Failure:
                self._tell_written(vm)
                lost = self._lost.setdefault(vm_id, now)
                if now - lost >= _GUARDIAN_S:
                    self._adopt(vm)
                continue
            self._lost.pop(vm_id, None)
            self._links[connection.fileno()] = _Link(vm, connection)
            poll.register(connection.fileno(), select.POLLIN)
        for vm_id in [known for known in self._written if known not in present]:
            del self._written[vm_id]
            self._lost.pop(vm_id, None)

    def _adopt(self, vm: VmDir) -> None:
        with self._lock:
            if vm.id in self._adopting:
                return
            self._adopting.add(vm.id)

        def adopt() -> None:
            try:
                self._vms.adopt(vm)
            except Failure:
                return  # the next scan tries again; what is written down was told
            finally:
                with self._lock:
                    self._adopting.discard(vm.id)

        threading.Thread(target=adopt, daemon=True).start()

    def _tell_written(self, vm: VmDir) -> None:
        try:
            payload = codec.dumps(vm.read_status())
        except Failure:
            return  # destroyed meanwhile
        if self._written.get(vm.id) != payload:
            self._written[vm.id] = payload
            self._session.channel.send(frames.EVENT, self._stream, payload)

    def _receive(self, link: _Link) -> bool:
        try:
            data = link.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            return False
        for frame in link.reader.feed(data):
            if frame.type == frames.EVENT:
                self._session.channel.send(frames.EVENT, self._stream, frame.payload)
            elif frame.type in (frames.ERROR, frames.EOF):
                return False
        return True


class _Link:
    """A watched supervisor."""

    def __init__(self, vm: VmDir, connection: socket.socket) -> None:
        self.vm = vm
        self.connection = connection
        self.reader = frames.FrameReader()
