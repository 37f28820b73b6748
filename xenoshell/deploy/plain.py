"""Events as plain lines: a time, who, what. No box drawing, no colour, safe to print on any terminal or to pipe."""

from __future__ import annotations

from ..console.clean import clean_line
from .events import Event


def size(count: float) -> str:
    """Bytes for people, in binary units with one decimal from 1 KiB on."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    unit = 0
    while count >= 1024 and unit < len(units) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {units[unit]}"


class Lines:
    """Turns the events of one stream into lines. It remembers what each blob is: only its first event says so."""

    def __init__(self) -> None:
        self._blobs: dict[str, str] = {}

    def __call__(self, event: Event) -> str:
        """``event`` as one line: seconds, host, VM, then what happened and what to do about it."""
        if event.event == "transfer.planned":
            self._blobs[event.text("blob")] = event.text("what")
        return line(event, self._blobs.get(event.text("blob"), ""))


def line(event: Event, blob: str = "") -> str:
    """``event`` as one line, on its own. ``blob``: what a transfer is about, such as "kernel"."""
    who = "  ".join(x for x in (event.host, event.vm) if x) or "session"
    return clean_line(f"{event.t:8.2f}  {who}  {_what(event, blob or 'image')}")


def _what(event: Event, blob: str) -> str:
    text, number = event.text, event.number
    match event.event:
        case "session.started":
            where = f"{_count(event, 'vms', 'VM')} on {_count(event, 'hosts', 'host')}"
            return f"{text('session')}: {where} (id {text('session_id')[:8]})"
        case "session.done":
            ended = f"; {_why(event)}" if "cause" in event.fields else ""
            return f"done: {text('ready')} ready, {text('failed')} failed, {number('seconds'):.1f} s{ended}"
        case "host.connecting":
            again = f" (attempt {text('attempt')})" if number("attempt") > 1 else ""
            return f"connecting{again}"
        case "host.connected":
            return f"connected, {number('rtt_ms'):.0f} ms, key {text('fingerprint')}"
        case "host.facts":
            memory, disk = number("memory_mib") * 2**20, number("disk_free_mib") * 2**20
            qemu = f"QEMU {text('qemu')}" if text("qemu") else "no QEMU"
            return f"{text('cpus')} CPUs, {size(memory)} memory, {size(disk)} disk free, {qemu}, {text('accel')}"
        case "host.refused":
            return f"refused: {_why(event)}"
        case "host.lost":
            retry = event.fields.get("retry_s")
            after = f" Next attempt in {number('retry_s'):.1f} s." if retry is not None else ""
            return f"lost: {_why(event)}{after}"
        case "host.back":
            return f"back after {number('after_s'):.1f} s"
        case "transfer.planned":
            base = f" on top of {text('base')[:12]}" if text("base") else ""
            return f"needs {text('what')} ({size(number('bytes_image'))}): {size(number('bytes_needed'))} to send{base}"
        case "transfer.progress":
            needed = number("bytes_needed")
            share = 100 * number("bytes_done") / needed if needed else 100
            return f"{blob}: {size(number('bytes_done'))} of {size(needed)} ({share:.0f} %) from {text('from')}"
        case "transfer.done":
            return f"{blob} complete: {size(number('bytes_sent'))} sent in {number('seconds'):.1f} s"
        case "vm.created":
            return f"created ({text('id')})"
        case "vm.booting":
            return "booting" + _under(event)
        case "vm.running":
            return "running" + _under(event)
        case "vm.ready":
            at = f" at {text('address')}" if text("address") else ""
            return f"ready after {number('seconds'):.1f} s{at}" + _under(event)
        case "vm.exited":
            return f"exited: {_why(event)}"
        case _:
            return f"failed: {_why(event)}"


def _count(event: Event, field: str, what: str) -> str:
    number = int(event.number(field))
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _under(event: Event) -> str:
    return f" under {event.text('accel').upper()}" if event.text("accel") else ""


def _why(event: Event) -> str:
    remedy = f". To do: {event.text('remedy')}" if event.text("remedy") else ""
    return f"{event.text('message')} [{event.text('cause')}]{remedy}."
