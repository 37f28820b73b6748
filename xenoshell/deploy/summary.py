"""The table at the end of a deployment, as typed rows: host, place, price, transfer, boot, ready, address.

The rows are folded from events, so a running deployment, its end and a replay of it show the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from .events import Event
from .money import plain, show
from .quote import Quote


@dataclass(frozen=True)
class Row:
    """One VM. Times in seconds, None until known: ``transfer_s`` that of its host's image, ``boot_s`` from created to
    running, ``ready_s`` from the VM's start to ready. ``state``: what its last event said."""

    vm: str
    host: str
    place: str = ""
    currency: str = ""
    per_hour: Decimal | None = None
    transfer_bytes: int = 0
    transfer_s: float | None = None
    created_at: float | None = None
    boot_s: float | None = None
    ready_s: float | None = None
    ready_at: float | None = None
    state: str = "planned"
    accel: str = ""
    address: str = ""
    cause: str = ""
    message: str = ""
    remedy: str = ""

    @property
    def image_there(self) -> bool:
        """Whether the host has the image: it made the VM, or has it running."""
        return self.created_at is not None or self.state in ("running", "ready")

    @property
    def price(self) -> str:
        """For people: ``0.012 EUR/h``, or ``free``."""
        if self.per_hour is None:
            return ""
        return f"{show(self.per_hour, self.currency)}/h" if self.per_hour else "free"

    def to_json(self) -> dict[str, Any]:
        out = {name: getattr(self, name) for name in Row.__dataclass_fields__}
        return out | {"per_hour": None if self.per_hour is None else plain(self.per_hour)}


class Summary:
    """A reader of events that keeps the rows and the session's name; ``quote`` fills in place and price."""

    def __init__(self, quote: Quote | None = None) -> None:
        self.session = ""
        self._rows: dict[str, Row] = {}
        self._hosts: dict[str, tuple[int, float | None]] = {}
        self._first: dict[str, float] = {}
        self._away: dict[str, dict[str, Any]] = {}
        self._priced = False
        if quote is not None:
            self.price(quote)

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row for each VM, with what its host's transfers took."""
        out = []
        for row in self._rows.values() if self._priced else sorted(self._rows.values(), key=lambda r: natural(r.vm)):
            sent, seconds = self._hosts.get(row.host, (0, None))
            shown = replace(row, transfer_bytes=sent, transfer_s=seconds)
            if row.state == "planned" and row.host in self._away:
                # A VM that is there already, as far as anybody knows: its host could not be asked.
                shown = replace(shown, state="unknown", **self._away[row.host])
            out.append(shown)
        return tuple(out)

    def price(self, quote: Quote) -> None:
        """Take places, prices and the order of rows from the quote that was deployed."""
        self._priced = True
        old, self._rows = self._rows, {}
        for host in quote.hosts:
            for vm in host.vms:
                row = old.pop(vm.vm, None) or Row(vm.vm, host.host)
                self._rows[vm.vm] = replace(
                    row, host=host.host, place=host.place, currency=vm.currency, per_hour=vm.per_hour
                )
        self._rows |= old

    def __call__(self, event: Event) -> None:
        name = event.event
        if name == "session.started":
            self.session = event.text("session")
            self._hosts.clear()
            self._first.clear()
            self._away.clear()
        elif name in ("host.connected", "host.back"):
            self._away.pop(event.host, None)
        elif name == "host.refused":
            self._away[event.host] = _why(event)
        elif name == "transfer.planned":
            self._first.setdefault(event.host, event.t)
        elif name == "transfer.done":
            sent, _ = self._hosts.get(event.host, (0, None))
            began = self._first.get(event.host, event.t)
            self._hosts[event.host] = sent + int(event.number("bytes_sent")), round(event.t - began, 3)
        elif name == "host.lost":
            self._away[event.host] = _why(event)
            for vm, row in self._rows.items():
                if row.host == event.host and row.state not in ("failed", "exited"):
                    self._rows[vm] = replace(row, state="unknown", **_why(event))
        elif event.vm:
            self._vm(event)

    def _vm(self, event: Event) -> None:
        row = self._rows.get(event.vm) or Row(event.vm, event.host)
        row = replace(row, host=event.host, accel=event.text("accel") or row.accel)
        change: dict[str, Any] = {}
        match event.event:
            case "vm.created":
                change = {"state": "created", "created_at": event.t}
            case "vm.booting":
                change = {"state": "booting"}
            case "vm.running":
                since = row.created_at
                change = {"state": "running", "boot_s": None if since is None else round(event.t - since, 3)}
            case "vm.ready":
                change = {
                    "state": "ready",
                    "ready_s": event.number("seconds"),
                    "ready_at": event.t,
                    "address": event.text("address"),
                    "cause": "",
                    "message": "",
                    "remedy": "",
                }
            case "vm.exited":
                change = {"state": "exited", **_why(event)}
            case "vm.failed":
                change = {"state": "failed", **_why(event)}
        self._rows[event.vm] = replace(row, **change)


def natural(name: str) -> tuple[str, int]:
    """A key that sorts web-2 before web-10."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() and len(number) < 9 else (name, 0)


def summary(events: Iterable[Event], quote: Quote | None = None) -> tuple[Row, ...]:
    """The rows of a whole run."""
    fold = Summary(quote)
    for event in events:
        fold(event)
    return fold.rows


def _why(event: Event) -> dict[str, Any]:
    return {name: event.text(name) for name in ("cause", "message", "remedy")}
