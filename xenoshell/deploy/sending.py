"""One blob on its way to one host, as events; and what of its failures concerns only the VMs that need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

from ..wire.causes import Failure
from ..wire.values import Recipe
from . import events
from .events import Event
from .need import Blob
from .ports import TRANSPORT, Clock, Connector, L, Policy

#: A host that loses what it had acknowledged gets a blob this often; then its acknowledgements are no progress.
TIMES = 16


@dataclass
class Transferred:
    """What was sent to a host over all its blobs and connections: bytes, and seconds from the first to the last.

    ``acknowledged``: bytes of each blob, by digest, those of connections that broke included."""

    bytes_sent: int = 0
    seconds: float = 0.0
    began: float | None = None
    acknowledged: dict[str, int] = field(default_factory=dict)


@dataclass
class Sending(Generic[L]):
    """Sends blobs to ``host`` over one connection. ``progressed`` is told whenever more is on the host."""

    host: str
    connector: Connector[L]
    transferred: Transferred
    emit: Callable[[Event], None]
    now: Callable[[], float]
    progressed: Callable[[], None]
    clock: Clock
    policy: Policy

    async def send(self, link: L, blob: Blob) -> Failure | None:
        """Send one blob. A failure that concerns it alone is the result; that of the connection is raised."""
        began = self.now()
        if self.transferred.began is None:
            self.transferred.began = began
        last, most, whole = began - self.policy.progress_every_s, 0, 0
        acknowledged = self.transferred.acknowledged

        def on_recipe(recipe: Recipe) -> None:
            nonlocal whole
            whole = sum(segment.packed for segment in recipe.segments)
            self._planned(blob, recipe)

        def on_progress(done: int, needed: int) -> None:
            nonlocal last, most
            t = self.now()
            if done > most:  # a host counts only what it has verified and written
                acknowledged[blob.digest] = acknowledged.get(blob.digest, 0) + done - most
                most = done
                if acknowledged[blob.digest] <= TIMES * whole:
                    self.progressed()
            if done >= needed or t - last >= self.policy.progress_every_s:
                last = t
                self.emit(
                    events.transfer_progress(
                        t, self.host, bytes_done=done, bytes_needed=needed, source="client", blob=blob.digest
                    )
                )

        busy = 0
        while True:
            try:
                sent = await self.connector.send(link, blob.digest, on_recipe, on_progress)
                break
            except Failure as failure:
                if failure.cause in TRANSPORT:
                    raise
                pause = self.policy.pause(busy + 1, self.clock.random())
                if failure.cause != "busy" or self.now() + pause - began > self.policy.back_s:
                    return failure
                # Another client sends it, or what is left of a connection of ours that was lost: it ends or gets done.
                busy += 1
                await self.clock.sleep(pause)
        t = self.now()
        self.progressed()
        self.transferred.bytes_sent += sent
        self.transferred.seconds = t - self.transferred.began
        self.emit(events.transfer_done(t, self.host, bytes_sent=sent, seconds=t - began, blob=blob.digest))
        return None

    def _planned(self, blob: Blob, recipe: Recipe) -> None:
        self.emit(
            events.transfer_planned(
                self.now(),
                self.host,
                bytes_image=recipe.size,
                bytes_needed=sum(s.packed for s in recipe.segments),
                base=recipe.held[0] if recipe.held else None,
                blob=blob.digest,
                what=blob.what,
            )
        )
