"""The helper: serves one SSH connection. Reads requests from its channels, does them, answers; ends when stdin ends.

One thread reads each channel and writes segments at once; what may take long runs in a thread of its own, so that other
requests are answered meanwhile. Whatever a client sends, the worst that happens to the helper is an ERROR frame.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import xenoshell
from xenoshell.host import facts, library, proofs, statedir, vmdir
from xenoshell.host.channel import Channel, ChannelClosed, SocketChannel
from xenoshell.host.params import Params, flag, integer, number, text
from xenoshell.host.rendezvous import Rendezvous
from xenoshell.host.store import FIRST_TRANSFER, Store
from xenoshell.host.streams import Session, Stream
from xenoshell.host.transfer import SegmentFailure
from xenoshell.host.unpack import Unpacker
from xenoshell.host.vms import Vms
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.frames import Frame, WireError
from xenoshell.wire.values import HostFacts, Recipe

_MAX_WORKERS = 256
_SILENCE_S = 90.0  # a client pings; one that is not heard for so long is gone, though its connection may not know
_LISTEN_S = 5.0
_FINISH_S = 10.0  # how long work under way may go on when the connection has ended


class Verb(NamedTuple):
    """How a verb is done: ``quick`` and ``long`` give the answer, ``stream`` answers by itself."""

    kind: str
    do: Callable[..., Any]


class Helper:
    """One helper: a state directory, its store and VMs, and the channels of one connection."""

    def __init__(self, state_dir: str, program: str) -> None:
        self.state_dir = state_dir
        self._library = program
        self._unpacker = Unpacker()
        self.store = Store(state_dir, self._unpacker)
        self.vms = Vms(state_dir, program, self.store)
        self._rendezvous = Rendezvous()
        self._workers: List[threading.Thread] = []
        self._sessions: List[Session] = []
        self._lock = threading.Lock()
        self._ending = False
        self._over = threading.Event()
        self._verbs: Dict[str, Verb] = {
            "facts": Verb("long", lambda params: self.facts()),
            "ping": Verb("quick", lambda params: {}),
            "library": Verb("quick", self._keep_library),
            "check": Verb("long", self._check),
            "prove": Verb("long", self._prove),
            "blob.begin": Verb("long", lambda params: self.store.begin(recipe_of(params))),
            "blob.commit": Verb("long", lambda params: self.store.commit(integer(params, "transfer"))),
            "blob.drop": Verb("long", self._drop),
            "vm.create": Verb("stream", self._create),
            "vm.list": Verb("long", lambda params: {"vms": self.vms.list()}),
            "vm.stop": Verb("long", lambda params: self.vms.order(text(params, "id"), "stopped", text(params, "op"))),
            "vm.start": Verb("long", lambda params: self.vms.order(text(params, "id"), "running", text(params, "op"))),
            "vm.restart": Verb(
                "long", lambda params: self.vms.order(text(params, "id"), "restart", text(params, "op"))
            ),
            "vm.destroy": Verb("long", lambda params: self.vms.destroy(text(params, "id"), text(params, "op"))),
            "vm.renew": Verb("long", self._renew),
            "vm.watch": Verb("stream", self._watch),
            "vm.logs": Verb("stream", self._logs),
            "vm.console": Verb("stream", self._console),
        }

    # ------------------------------------------------------------ life

    def run(self, channel: Channel) -> None:
        """Say hello on the first channel, then serve it and those that the rendezvous takes until it ends."""
        session = Session(channel)
        channel.respond(0, self.facts())
        self._spawn(self._accept)
        self._spawn(self._look_after)
        self._spawn(self._listen)
        self.serve(session)

    def _listen(self) -> None:
        """End this process when its client has fallen silent: what it locks is then free for the next."""
        while not self._over.wait(_LISTEN_S):
            with self._lock:
                heard = max(session.channel.heard for session in self._sessions) if self._sessions else 0.0
            if time.monotonic() - heard > _SILENCE_S:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _look_after(self) -> None:
        """See to what helpers and supervisors that died have left."""
        if library.use(self._library):
            self.vms.adopt_all()
            library.compile_all(self._library)
            library.tidy(self._library)
        self.store.clean()
        vmdir.tidy(self.vms.directory)

    def close(self) -> None:
        """End everything: channels, streams, work under way (for a bounded time), locks, the socket."""
        self._over.set()
        with self._lock:
            self._ending = True
            sessions = list(self._sessions)
        self._rendezvous.close()
        for session in sessions:
            session.channel.close()
            session.end_all()
        deadline = time.monotonic() + _FINISH_S
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self.store.close()

    def serve(self, session: Session) -> None:
        """Handle every frame of a channel until it ends or breaks the format."""
        channel = session.channel
        with self._lock:
            if self._ending:
                return
            self._sessions.append(session)
        try:
            for frame in channel.frames():
                self._handle(session, frame)
        except WireError as error:
            with contextlib.suppress(ChannelClosed):  # else it broke the format by going away
                channel.fail(0, Failure("protocol", str(error)))
        except ChannelClosed:
            pass  # the client went: nobody is left to tell
        finally:
            with self._lock:
                self._sessions.remove(session)
            session.end_all()

    def _accept(self) -> None:
        while True:
            connection = self._rendezvous.accept()
            if connection is None:
                return
            channel = SocketChannel(connection)
            if not self._spawn(self._serve_socket, channel):
                channel.release()

    def _serve_socket(self, channel: SocketChannel) -> None:
        try:
            self.serve(Session(channel))
        finally:
            channel.release()

    def _spawn(self, run: Callable[..., None], *arguments: object) -> bool:
        """Run something in a thread of its own; False when there are too many already or the helper ends."""
        with self._lock:
            self._workers = [w for w in self._workers if w.is_alive()]
            if self._ending or len(self._workers) >= _MAX_WORKERS:
                return False
            worker = threading.Thread(target=run, args=arguments, daemon=True)
            worker.start()
            self._workers.append(worker)
        return True

    # ------------------------------------------------------------ frames

    def _handle(self, session: Session, frame: Frame) -> None:
        if frame.type == frames.SEGMENT:
            self._segment(session, frame)
        elif frame.type == frames.REQUEST:
            if session.get(frame.stream) is not None:
                session.channel.fail(frame.stream, Failure("bad-request", "stream %d is in use" % frame.stream))
                return
            self._guard(session, frame.stream, lambda: self._request(session, frame))
        elif frame.type in (frames.DATA, frames.EOF):
            stream = session.get(frame.stream)
            if stream is not None:  # else it ended just now, from our side
                act = (lambda: stream.data(frame.payload)) if frame.type == frames.DATA else stream.eof
                self._guard(session, frame.stream, act)
        elif frame.type != frames.ERROR:
            session.channel.fail(
                frame.stream, Failure("bad-request", "a client does not send frames of type %d" % frame.type)
            )

    def _segment(self, session: Session, frame: Frame) -> None:
        try:
            index = self.store.segment(frame.stream, frame.payload)
        except SegmentFailure as failure:
            session.channel.fail(frame.stream, failure, index=failure.index)
        except Failure as failure:
            session.channel.fail(frame.stream, failure)
        except OSError as error:
            session.channel.fail(frame.stream, failure_of(error, self.state_dir))
        else:
            session.channel.respond(frame.stream, {"index": index})

    def _request(self, session: Session, frame: Frame) -> None:
        number = frame.stream
        if not 0 < number < FIRST_TRANSFER:
            raise Failure("bad-request", "requests have stream ids from 1 to %d, not %d" % (FIRST_TRANSFER - 1, number))
        params = codec.loads(frame.payload)
        word = params.get("verb")
        verb = self._verbs.get(word) if isinstance(word, str) else None
        if verb is None:
            raise Failure("bad-request", "no such verb: %r; there are %s" % (str(word)[:80], ", ".join(self._verbs)))
        if verb.kind == "stream":
            verb.do(session, number, params)
            return
        if verb.kind == "quick":
            session.channel.respond(number, verb.do(params))
            return
        stream = Stream()
        session.open(number, stream)

        def work() -> None:
            def answer() -> None:
                value = verb.do(params)
                session.end(number)
                session.channel.respond(number, value)

            self._guard(session, number, answer)

        if not self._spawn(work):
            raise Failure("busy", "%d requests are under way on this host" % _MAX_WORKERS)

    def _guard(self, session: Session, number: int, act: Callable[[], None]) -> None:
        """Do something for a stream; whatever goes wrong with it becomes an ERROR frame."""
        try:
            act()
        except ChannelClosed:
            return
        except Exception as error:  # noqa: BLE001 - the client is told, and the helper goes on
            stream = session.get(number)
            session.end(number)
            if stream is not None:
                stream.stop()
            try:
                session.channel.fail(number, failure_of(error, self.state_dir))
            except ChannelClosed:
                return

    # ------------------------------------------------------------ verbs

    def facts(self) -> HostFacts:
        """The facts of this moment."""
        arch = os.uname().machine
        emulator = facts.qemu(self.state_dir, arch)
        return facts.gather(
            self.state_dir,
            version=xenoshell.__version__,
            emulator=emulator,
            kvm=proofs.kvm_state(os.path.join(self.state_dir, "proofs"), arch),
            codecs=self._unpacker.codecs(),
            channel=self._rendezvous.path,
            blobs=self.store.held(),
            vms=self.vms.statuses(),
            library=library.use(self._library),
        )

    def _keep_library(self, params: Params) -> Any:
        """Done before the next request of the channel is read, which may need it."""
        if not library.use(self._library):
            library.install(self._library, text(params, "rest"))
            library.use(self._library)
            self._spawn(self._look_after)
        return {}

    def _check(self, params: Params) -> Any:
        from xenoshell.host import check

        kernel = None
        if params.get("kernel") is not None:
            digest = text(params, "kernel")
            if self.store.holds(digest):
                kernel = (self.store.path(digest), digest)
        return {"lines": check.check(self.facts(), self.state_dir, kernel)}

    def _prove(self, params: Params) -> Any:
        from xenoshell.host import accel

        digest = text(params, "kernel")
        if not self.store.holds(digest):
            raise Failure("not-found", "kernel %s is not on this host" % digest, "transfer it first")
        kept = os.path.join(self.state_dir, "proofs")
        return accel.prove(self.store.path(digest), digest, kept, os.uname().machine)

    def _drop(self, params: Params) -> Any:
        self.store.drop(text(params, "digest"), self.vms.blobs_used)
        return {}

    def _renew(self, params: Params) -> Any:
        budget_s = None if params.get("budget_s") is None else number(params, "budget_s")
        return self.vms.renew(text(params, "id"), text(params, "op"), number(params, "lease_s"), budget_s)

    def _create(self, session: Session, stream: int, params: Params) -> None:
        from xenoshell.host import vmstreams

        upload = vmstreams.Upload(self.vms, session, stream, params, self.work)
        session.open(stream, upload)
        upload.start()

    def _watch(self, session: Session, stream: int, params: Params) -> None:
        from xenoshell.host import vmstreams

        self._run_stream(session, stream, vmstreams.Watch(self.vms, session, stream))

    def _logs(self, session: Session, stream: int, params: Params) -> None:
        from xenoshell.host import vmstreams

        ask = {"verb": "logs", "follow": flag(params, "follow"), "tail": integer(params, "tail")}
        self._run_stream(session, stream, vmstreams.Relay(self.vms, session, stream, text(params, "id"), ask))

    def _console(self, session: Session, stream: int, params: Params) -> None:
        from xenoshell.host import vmstreams

        ask = {"verb": "console", "replay": integer(params, "replay")}
        self._run_stream(session, stream, vmstreams.Relay(self.vms, session, stream, text(params, "id"), ask))

    def _run_stream(self, session: Session, number: int, stream: Any) -> None:
        session.open(number, stream)
        self.work(session, number, stream.run)

    def work(self, session: Session, stream: int, run: Callable[[], None]) -> None:
        """Run a stream's long part in a thread; the stream is over when it returns. Raises `Failure` (busy)."""

        def whole() -> None:
            self._guard(session, stream, run)
            session.end(stream)

        if not self._spawn(whole):
            session.end(stream)
            raise Failure("busy", "%d requests are under way on this host" % _MAX_WORKERS)


def failure_of(error: Exception, state_dir: str) -> Failure:
    """The failure that tells a client about an exception."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, codec.CodecError):
        return Failure("bad-request", str(error))
    if isinstance(error, OSError) and statedir.is_full(error):
        return statedir.disk_full(state_dir, 0)
    return Failure("internal", "".join(traceback.format_exception(type(error), error, error.__traceback__))[-3000:])


def recipe_of(params: Params) -> Recipe:
    """The recipe in a blob.begin. Raises `codec.CodecError`."""
    return codec.decode(Recipe, params.get("recipe"))


def take_standard_streams() -> Tuple[int, int]:
    """Private copies of stdin and stdout; whatever else reads or prints (children too) gets /dev/null and stderr."""
    read_fd, write_fd = os.dup(0), os.dup(1)  # not inherited by children
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return read_fd, write_fd


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came. No request that happens to be at work may take it for its own failure."""


def _terminate(signal_number: int, frame: object) -> None:
    raise _Terminated


def main(arguments: List[str]) -> int:
    """PREAMBLE (hexadecimal), VERSION of the bundle, STATE-DIR (hexadecimal of its UTF-8, or ``-``), the old PATH."""
    os.umask(0o077)
    read_fd, write_fd = take_standard_streams()
    channel = Channel(read_fd, write_fd)
    preamble, version, where, path = arguments
    os.environ["PATH"] = path or os.defpath
    helper = None
    try:
        for word in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(word, _terminate)
        os.write(write_fd, bytes.fromhex(preamble))
        state_dir = statedir.open_state_dir(None if where == "-" else bytes.fromhex(where).decode())
        helper = Helper(state_dir, os.path.join(state_dir, "lib", "xenoshell-%s.py" % version))
        helper.run(channel)
    except Failure as failure:
        channel.fail(0, failure)
        return 1
    except ChannelClosed:
        return 1
    except _Terminated:
        return 0
    finally:
        if helper is not None:
            helper.close()
    sys.stderr.flush()
    return 0
