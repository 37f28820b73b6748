"""The supervisor's socket: helpers ask for status, watch, console and logs, any number at a time."""

from __future__ import annotations

import socket
from typing import Any, Callable, Dict, Iterator, List, Optional

from xenoshell.host.console_log import PIECE, ConsoleLog, note
from xenoshell.host.reactor import READ, Reactor, Stream
from xenoshell.wire import codec, frames
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import ErrorValue, VmStatus

#: A viewer that has not taken this many bytes loses what follows, until it has.
BEHIND = 256 << 10
MAX_REPLAY = 1 << 20


class Owner:
    """What the server needs of the VM's supervisor."""

    log: ConsoleLog

    def current(self) -> VmStatus:
        """The status now."""
        raise NotImplementedError

    def converge(self) -> None:
        """Read the journal again and act on it."""
        raise NotImplementedError

    def renew(self, seconds: float, budget_s: Optional[float]) -> None:
        """A new lease from now on, and a new budget of running time unless None."""
        raise NotImplementedError

    def type(self, data: bytes) -> None:
        """Input for the guest's console."""
        raise NotImplementedError


class Subscription:
    """One request that goes on: a watch, a console or a log that is followed."""

    def __init__(self, client: Client, stream: int, live: bool, typing: bool = False) -> None:
        self.client = client
        self.stream = stream
        self.live = live  # takes console bytes
        self.typing = typing  # gives console input
        self.skipped = 0
        self.pieces: Optional[Iterator[bytes]] = None  # of the log, still to be sent
        self.follow = False
        self.sent_total = 0  # the log's total up to which `pieces` go

    def console(self, data: bytes) -> None:
        """Console bytes from the guest."""
        if self.client.stream.pending > BEHIND:
            if self.follow:  # the log has it: `data` comes from there, and so does what follows
                self.live, self.pieces = False, iter(())
                self.sent_total = self.client.log.total - len(data)
            else:
                self.skipped += len(data)
            return
        self.caught_up()
        self.client.data(self.stream, data)

    def caught_up(self) -> None:
        """Say what was lost."""
        if self.skipped:
            self.client.data(self.stream, note("%d bytes skipped" % self.skipped))
            self.skipped = 0


class Client:
    """One connection."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._reader = frames.FrameReader()
        self.subscriptions: Dict[int, Subscription] = {}
        self.watching: Dict[int, bool] = {}  # stream -> whether a status could not be sent for want of room
        self.stream = Stream(server.reactor, sock, self._received, self._lost)
        self.stream.on_drained = self._drained

    @property
    def log(self) -> ConsoleLog:
        """The VM's console log."""
        return self._server.owner.log

    def send(self, type_: int, stream: int, payload: bytes = b"") -> None:
        """Send a frame."""
        self.stream.write(frames.pack(type_, stream, payload))

    def data(self, stream: int, data: bytes) -> None:
        """Send bytes as DATA, in pieces."""
        for at in range(0, len(data), PIECE):
            self.send(frames.DATA, stream, data[at : at + PIECE])

    def status(self, status: bytes) -> None:
        """Tell watchers of a status (JSON)."""
        for stream in list(self.watching):
            behind = self.stream.pending > BEHIND
            self.watching[stream] = behind
            if not behind:
                self.send(frames.EVENT, stream, status)

    def _lost(self) -> None:
        self.subscriptions.clear()
        self.watching.clear()
        if self in self._server.clients:
            self._server.clients.remove(self)

    def _received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._frame(frame)
        except frames.WireError as error:
            self._error(0, Failure("protocol", str(error)))
            self._lost()
            self.stream.finish()

    def _error(self, stream: int, failure: Failure) -> None:
        self.send(frames.ERROR, stream, codec.dumps(ErrorValue(failure.cause, failure.message, failure.remedy)))

    def _frame(self, frame: frames.Frame) -> None:
        stream = frame.stream
        if frame.type == frames.REQUEST:
            try:
                self._request(stream, codec.loads(frame.payload))
            except codec.CodecError as error:
                self._error(stream, Failure("bad-request", str(error)))
            except Failure as failure:
                self._error(stream, failure)
        elif frame.type == frames.DATA:
            subscription = self.subscriptions.get(stream)
            if subscription is not None and subscription.typing:
                self._server.owner.type(frame.payload)
        elif frame.type == frames.EOF:
            known = self.watching.pop(stream, None) is not None
            if self.subscriptions.pop(stream, None) is not None or known:
                self.send(frames.EOF, stream)

    def _request(self, stream: int, request: Dict[str, Any]) -> None:
        verb = request.get("verb")
        owner = self._server.owner
        if verb in ("status", "poke", "renew"):
            if verb == "poke":
                owner.converge()
            elif verb == "renew":
                budget_s = None if request.get("budget_s") is None else _number(request, "budget_s", 0, 10**10)
                owner.renew(_number(request, "lease_s", 0, 10**10), budget_s)
            self.send(frames.RESPONSE, stream, codec.dumps(owner.current()))
        elif verb == "watch":
            self.send(frames.RESPONSE, stream, b"{}")
            self.send(frames.EVENT, stream, codec.dumps(owner.current()))
            self.watching[stream] = False
        elif verb == "console":
            replay = int(_number(request, "replay", 0, 10**12))
            past = b"".join(owner.log.read(min(replay, MAX_REPLAY))) if replay else b""
            self.send(frames.RESPONSE, stream, codec.dumps({"replay": len(past)}))
            self.data(stream, past)
            self.subscriptions[stream] = Subscription(self, stream, True, True)
        elif verb == "logs":
            subscription = Subscription(self, stream, False)
            subscription.follow = request.get("follow") is True
            subscription.pieces = owner.log.read(int(_number(request, "tail", 0, 10**12)))
            subscription.sent_total = owner.log.total
            self.subscriptions[stream] = subscription
            self.send(frames.RESPONSE, stream, b"{}")
            self._pump(subscription)
        else:
            raise Failure("bad-request", "unknown verb %r" % str(verb)[:80])

    def _pump(self, subscription: Subscription) -> None:
        """Send as much of a log as the viewer takes."""
        while subscription.pieces is not None and self.stream.open and self.stream.pending < PIECE:
            piece = next(subscription.pieces, None)
            if piece is not None:
                self.data(subscription.stream, piece)
                continue
            subscription.pieces = None
            if not subscription.follow:
                del self.subscriptions[subscription.stream]
                self.send(frames.EOF, subscription.stream)
                return
            log = self.log
            late = log.total - subscription.sent_total  # what came while the log was on its way
            if late:
                subscription.pieces, subscription.sent_total = log.read(late), log.total
            else:
                subscription.live = True

    def _drained(self) -> None:
        for stream, behind in list(self.watching.items()):
            if behind:
                self.watching[stream] = False
                self.send(frames.EVENT, stream, codec.dumps(self._server.owner.current()))
        for subscription in list(self.subscriptions.values()):
            if subscription.live:
                subscription.caught_up()
            elif subscription.pieces is not None:
                self._pump(subscription)


def _number(request: Dict[str, Any], name: str, least: float, most: float) -> float:
    value = request.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Failure("bad-request", "%s: expected a number from %d to %d, found %r" % (name, least, most, value))
    return value


class Server:
    """Accepts connections on a listening socket and spreads news among them."""

    def __init__(self, reactor: Reactor, listener: socket.socket, owner: Owner) -> None:
        self.reactor = reactor
        self.owner = owner
        self.clients: List[Client] = []
        self._listener = listener
        listener.setblocking(False)
        reactor.watch(listener.fileno(), READ, self._accept)

    def status(self, status: VmStatus) -> None:
        """Tell everyone who watches."""
        if any(client.watching for client in self.clients):
            payload = codec.dumps(status)
            self._each(lambda client: client.status(payload))

    def console(self, data: bytes) -> None:
        """Show everyone who looks."""
        for client in list(self.clients):
            for subscription in list(client.subscriptions.values()):
                if subscription.live:
                    subscription.console(data)

    def close(self) -> None:
        """Hang up."""
        self.reactor.forget(self._listener.fileno())
        self._listener.close()
        for client in self.clients:
            client.stream.hang_up()

    def _each(self, call: Callable[[Client], None]) -> None:
        for client in list(self.clients):
            call(client)

    def _accept(self, _ready: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self.clients.append(Client(self, sock))
