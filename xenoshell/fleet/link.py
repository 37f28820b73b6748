"""One SSH connection to one host with the helper behind it: requests, streams, further channels, and an orderly end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import asyncssh

from xenoshell.fleet.channel import Channel, Inbox, answer
from xenoshell.fleet.dial import Dialled, Progress, dial
from xenoshell.fleet.pipe import HelperPipe, SocketPipe
from xenoshell.fleet.sshconfig import files_for
from xenoshell.wire import frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.codec import CodecError, decode, encode, loads
from xenoshell.wire.values import CheckLine, HostFacts, Proof, VmSpec, VmStatus

if TYPE_CHECKING:
    from xenoshell.fleet.bundle import Bundle
    from xenoshell.fleet.inventory import Host
    from xenoshell.paths import Paths

T = TypeVar("T")

#: Below this first estimate (milliseconds) a round trip of its own is spent to measure better: sshd's fork and exec are
#: a few milliseconds, which matter only here.
REMEASURE_BELOW_MS = 30.0
#: So often a helper hears of its client at least: one that does not for 90 s takes it for gone and ends.
PING_EVERY_S = 20.0
#: Payload of DATA frames that are cut from something larger.
PIECE = 64 << 10


class ByteStream:
    """Bytes both ways: a guest's console or its log. Read from one task at a time."""

    def __init__(self, channel: Channel, inbox: Inbox, replay: int) -> None:
        self.replay = replay  # bytes of recent log that come first
        self._channel = channel
        self._inbox = inbox
        self._ended = False
        self._dropped = 0

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises `Failure` (connection-lost, or what the host reports).

        A reader that is too slow on a shared channel misses bytes, and reads how many.
        """
        while not self._ended:
            frame = await self._inbox.take()
            if frame.type == frames.EOF:
                self._ended = True
                break
            if frame.type != frames.DATA or not frame.payload:
                continue
            missed, self._dropped = self._inbox.dropped - self._dropped, self._inbox.dropped
            return (f"\r\n[{missed} bytes skipped]\r\n".encode() if missed else b"") + frame.payload
        return b""

    async def write(self, data: bytes) -> None:
        """Send ``data`` (to the guest's console); waits while the connection is full. Raises `Failure`."""
        for at in range(0, len(data), PIECE):
            await self._channel.send(frames.DATA, self._inbox.stream, data[at : at + PIECE])

    async def close(self) -> None:
        """End the stream and give its channel back. May be called twice."""
        with contextlib.suppress(Failure):
            self._channel.post(frames.EOF, self._inbox.stream)
        self._channel.release(self._inbox)
        if not self._channel.shared:
            self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class HostLink:
    """The helper on one host. Made by `connect`; every method may be used from many tasks at once."""

    def __init__(self, host: Host, dialled: Dialled, pipe: HelperPipe, facts: HostFacts) -> None:
        self.host = host
        self.facts = facts
        self.rtt_ms = pipe.rtt_ms
        self.fingerprint = dialled.key.fingerprint
        self.key_type = dialled.key.key_type
        self.address = dialled.route.hostname
        self.start_s = pipe.answer_s  # from the helper's start to its first answer, the round trip included
        self.clock_skew_s = facts.clock + pipe.rtt_ms / 2000 - pipe.answered_at  # how far the host's clock is ahead
        self._dialled = dialled
        self._control = pipe.channel
        self._pipe = pipe
        self._extra: set[Channel] = set()
        self._refused = ""
        self._library: asyncio.Task[None] | None = None
        self._pings: asyncio.Task[None] | None = None

    @property
    def failure(self) -> Failure | None:
        """Why the link is dead; None while it lives."""
        return self._control.failure

    async def ended(self) -> Failure:
        """Wait for the end of the link, whoever ends it; why it ended."""
        return await self._control.ended()

    @property
    def control(self) -> Channel:
        """The first channel: requests, events, and bulk data where the host grants no other."""
        return self._control

    @property
    def refused(self) -> str:
        """Why sshd grants no further channels, "" while it does."""
        return self._refused

    # ------------------------------------------------------------ requests

    def settle_in(self, packed: Bundle) -> None:
        """Once connected: let the helper hear of its client from time to time, and bring it the rest of the program if
        its host does not keep that. Requests that come behind may need it already; what takes another way waits for
        it (`library_kept`)."""
        self._pings = asyncio.create_task(self._ping_on())
        if self.facts.library:
            return
        inbox = self._control.ask("library", {"rest": base64.b64encode(packed.rest).decode()})

        async def kept() -> None:
            try:
                async with asyncio.timeout(60):
                    answer(self.host.name, "library", await inbox.take())
            except TimeoutError:
                raise Failure("timeout", f"{self.host.name}: no answer to library within 60 s") from None
            finally:
                self._control.release(inbox)

        self._library = asyncio.create_task(kept())

    async def library_kept(self) -> None:
        """Return once the host keeps the whole program. Raises the `Failure` if it could not (disk-full)."""
        if self._library is not None:
            await asyncio.shield(self._library)

    async def request(self, verb: str, *, timeout_s: float, **params: Any) -> dict[str, Any]:
        """Ask the helper. Raises `Failure` with the host's cause, or connection-lost, timeout, protocol."""
        return await self._control.request(verb, timeout_s=timeout_s, **params)

    async def ping(self, *, timeout_s: float = 10.0) -> float:
        """Measure one round trip (milliseconds) through the helper; ``rtt_ms`` keeps the smallest seen."""
        began = time.perf_counter()
        await self.request("ping", timeout_s=timeout_s)
        taken = (time.perf_counter() - began) * 1000
        self.rtt_ms = min(self.rtt_ms, taken)
        return taken

    async def _ping_on(self) -> None:
        """Keep the helper from taking silence for the end. What it answers is not judged: SSH's keep-alive is."""
        with contextlib.suppress(Failure):  # the link's end, which its users are told
            while True:
                await asyncio.sleep(PING_EVERY_S)
                self._control.release(self._control.ask("ping", {}))

    async def fresh_facts(self) -> HostFacts:
        """Ask for the facts again; they become ``facts``."""
        self.facts = await self._value(HostFacts, "facts", 30)
        return self.facts

    async def check(self, kernel: str | None = None) -> tuple[CheckLine, ...]:
        """The host's side of `hosts check`; ``kernel`` is the digest of a held blob to prove KVM with."""
        value = await self.request("check", timeout_s=90, kernel=kernel)
        return tuple(self._decode(CheckLine, line, "check") for line in self._items(value, "lines", "check"))

    async def prove(self, digest: str) -> Proof:
        """Whether KVM runs the kernel that the host holds as ``digest``."""
        return await self._value(Proof, "prove", 60, digest=digest)

    async def vm_create(self, spec: VmSpec, seed: bytes = b"") -> VmStatus:
        """Create (or find) the VM. ``seed`` is its NoCloud disk, of ``spec.seed_size`` bytes."""
        await self.library_kept()
        inbox = self._control.ask("vm.create", {"spec": encode(spec)})
        try:
            async with asyncio.timeout(120):
                if spec.seed_size:
                    for at in range(0, len(seed), PIECE):
                        await self._control.send(frames.DATA, inbox.stream, seed[at : at + PIECE])
                    await self._control.send(frames.EOF, inbox.stream, b"")
                return self._decode(VmStatus, answer(self.host.name, "vm.create", await inbox.take()), "vm.create")
        except TimeoutError:
            raise Failure("timeout", f"{self.host.name}: no answer to vm.create of {spec.id} within 120 s") from None
        finally:
            self._control.release(inbox)

    async def vm_list(self) -> tuple[VmStatus, ...]:
        """Every VM of the host; those that lost their supervisor get a new one."""
        value = await self.request("vm.list", timeout_s=60)
        return tuple(self._decode(VmStatus, vm, "vm.list") for vm in self._items(value, "vms", "vm.list"))

    async def vm_stop(self, id: str, *, op: str | None = None) -> VmStatus:
        """Order the guest to shut down. ``op`` repeated is the same order, done once; a new one is made if left out."""
        return await self._value(VmStatus, "vm.stop", 60, id=id, op=op or _op())

    async def vm_start(self, id: str, *, op: str | None = None) -> VmStatus:
        """Order an exited VM to run again."""
        return await self._value(VmStatus, "vm.start", 60, id=id, op=op or _op())

    async def vm_restart(self, id: str, *, op: str | None = None) -> VmStatus:
        """Order a stop and a start."""
        return await self._value(VmStatus, "vm.restart", 60, id=id, op=op or _op())

    async def vm_destroy(self, id: str, *, op: str | None = None) -> None:
        """Kill the VM and remove all that belongs to it; returns when nothing is left."""
        await self.request("vm.destroy", timeout_s=90, id=id, op=op or _op())

    async def vm_renew(
        self, id: str, lease_s: float, budget_s: float | None = None, *, op: str | None = None
    ) -> VmStatus:
        """Let the VM run for ``lease_s`` seconds from now (0: no lease); with ``budget_s``, for so many in all, those
        that it has run included (0: no limit)."""
        budget = {} if budget_s is None else {"budget_s": float(budget_s)}
        return await self._value(VmStatus, "vm.renew", 60, id=id, op=op or _op(), lease_s=float(lease_s), **budget)

    # ------------------------------------------------------------ streams

    async def watch(self) -> AsyncIterator[VmStatus]:
        """Every change of any VM of the host, the present state first. Ends by `Failure` (connection-lost).

        Silence is bounded by the keep-alive: a dead connection is noticed within a minute.
        """
        inbox = self._control.ask("vm.watch", {})
        try:
            while True:
                frame = await inbox.take()
                if frame.type == frames.EVENT:
                    yield self._status(frame.payload)
                elif frame.type == frames.EOF:
                    return
        finally:
            self._control.release(inbox)
            with contextlib.suppress(Failure):
                self._control.post(frames.EOF, inbox.stream)

    async def console(self, id: str, replay: int = 16 << 10) -> ByteStream:
        """Attach to a guest's console; up to ``replay`` bytes of what it wrote before come first."""
        return await self._stream("vm.console", {"id": id, "replay": replay})

    async def logs(self, id: str, follow: bool = False, tail: int = 0) -> ByteStream:
        """A guest's console log: the last ``tail`` bytes (0: all that is kept), and what follows."""
        return await self._stream("vm.logs", {"id": id, "follow": follow, "tail": tail})

    async def extra_channel(self) -> Channel | None:
        """A further channel, which the caller must `close`. None if sshd refuses: use ``control`` then."""
        if self._refused or not self.facts.channel or self.failure is not None:
            return None
        await self.library_kept()
        channel = Channel(self.host.name, shared=False)
        channel.on_failure = lambda _: self._extra.discard(channel)
        try:
            async with asyncio.timeout(30):
                await self._dialled.conn.create_unix_connection(lambda: SocketPipe(channel), self.facts.channel)
        except TimeoutError:
            self._refused = "no answer to the request for a channel"
            return None
        except (asyncssh.Error, OSError) as error:
            self._refused = str(error)
            return None
        self._extra.add(channel)
        return channel

    async def count_sessions(self, most: int) -> int:
        """How many sessions (at most ``most``) sshd grants at once on this connection beside the helper's."""
        session = self._dialled.conn.create_session
        options: dict[str, Any] = {"encoding": None, "env": {}, "send_env": [], "request_pty": False}
        tries = [session(asyncssh.SSHClientSession, "cat", **options) for _ in range(most)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        granted = 0
        for result in results:
            if isinstance(result, asyncssh.ChannelOpenError):
                continue
            if isinstance(result, BaseException):
                raise result
            granted += 1
            result[0].close()
        return granted

    # ------------------------------------------------------------ the end

    async def close(self) -> None:
        """End the helper and the connection. VMs go on. May be called twice."""
        for channel in (*self._extra, self._control):
            channel.close()
        self._extra.clear()
        tasks = [task for task in (self._pings, self._library) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pipe.close()
        await self._dialled.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ inside

    async def _stream(self, verb: str, params: dict[str, Any]) -> ByteStream:
        channel = await self.extra_channel() or self._control
        inbox = channel.ask(verb, params)
        try:
            async with asyncio.timeout(30):
                value = answer(self.host.name, verb, await inbox.take())
        except BaseException as error:
            channel.release(inbox)
            if not channel.shared:
                channel.close()
            if isinstance(error, TimeoutError):
                raise Failure("timeout", f"{self.host.name}: no answer to {verb} within 30 s") from None
            raise
        replay = value.get("replay", 0)
        return ByteStream(channel, inbox, replay if isinstance(replay, int) else 0)

    async def _value(self, cls: type[T], verb: str, timeout_s: float, **params: Any) -> T:
        return self._decode(cls, await self.request(verb, timeout_s=timeout_s, **params), verb)

    def _items(self, value: dict[str, Any], key: str, verb: str) -> list[Any]:
        items = value.get(key)
        if not isinstance(items, list):
            raise Failure("protocol", f"{self.host.name}: the answer to {verb} is malformed: {key} is no list")
        return items

    def _decode(self, cls: type[T], value: Any, verb: str) -> T:
        try:
            return decode(cls, value)
        except CodecError as error:
            raise Failure("protocol", f"{self.host.name}: the answer to {verb} is malformed: {error}") from error

    def _status(self, payload: bytes) -> VmStatus:
        try:
            return decode(VmStatus, loads(payload))
        except CodecError as error:
            raise Failure("protocol", f"{self.host.name}: malformed event: {error}") from error


async def connect(host: Host, paths: Paths, *, deadline_s: float) -> HostLink:
    """Connect to ``host``, start the helper there and take its facts, all within ``deadline_s`` seconds.

    Raises `Failure` (unreachable, auth-failed, host-key-unknown, host-key-changed, timeout, no-python, protocol,
    internal); a timeout names what was being done.
    """
    progress = Progress()
    try:
        async with asyncio.timeout(deadline_s):
            return await _connect(host, paths, progress)
    except TimeoutError:
        cause = "timeout" if progress.connected else "unreachable"
        raise Failure(cause, f"{host.name}: no answer within {deadline_s:g} s while {progress.step}") from None


async def _connect(host: Host, paths: Paths, progress: Progress) -> HostLink:
    from xenoshell.fleet.bundle import bundle, stub

    preamble = os.urandom(16)
    control = Channel(host.name, preamble=preamble)
    packing = asyncio.create_task(asyncio.to_thread(bundle))  # while the network is waited for
    dialled: Dialled | None = None
    pipe: HelperPipe | None = None
    try:
        files = files_for(host, paths.known_hosts)
        dialled = await dial(
            host.name, host.target, files, progress, on_lost=lambda error: _lost(control, host.name, error)
        )
        packed = await packing
        greeting = control.open(0)
        pipe = HelperPipe(control, progress)
        pipe.begin()
        try:
            await dialled.conn.create_session(
                pipe.opened,
                stub(packed, preamble, host.state_dir),
                encoding=None,
                env={},
                send_env=[],
                request_pty=False,
            )
        except asyncssh.ChannelOpenError as error:
            raise control.failure or Failure(
                "protocol",
                f"{host.name}: sshd there does not let {dialled.route.user} run a command: {error.reason}",
                "allow this account to run commands over SSH (MaxSessions, a restricted key, a shell that is off?)",
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise control.failure or Failure(
                "connection-lost", f"{host.name}: the connection ended while {progress.step}: {error}"
            ) from error
        pipe.write(packed.packed)
        value = answer(host.name, "the greeting", await greeting.take())
        control.release(greeting)
        pipe.answered()
        facts = decode(HostFacts, value)
        link = HostLink(host, dialled, pipe, facts)
        if link.rtt_ms < REMEASURE_BELOW_MS:
            progress.step = f"measuring the round trip to {host.name}"
            await link.ping()
        link.settle_in(packed)
    except BaseException as error:
        packing.cancel()
        control.close()
        if pipe is not None:
            pipe.close()
        if dialled is not None:
            for conn in (dialled.conn, *reversed(dialled.jumps)):
                conn.abort()
        if isinstance(error, CodecError):
            raise Failure("protocol", f"{host.name}: malformed facts: {error}") from error
        raise
    return link


def _lost(control: Channel, name: str, error: Exception | None) -> None:
    reason = f": {error}" if error is not None and str(error) else ""
    control.fail(Failure("connection-lost", f"{name}: the SSH connection ended{reason}"))


def _op() -> str:
    return uuid.uuid4().hex
