"""A deployment on the screen: one row for each host and VM. Imports Rich, so it comes late."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..units import human_duration, human_size
from .common import count
from .progress import HostState, Progress, VmState

if TYPE_CHECKING:
    from rich.style import Style

_PER_SECOND = 8
_BAR = 16
#: From so many columns on there is room for a bar.
_WIDE = 110
_GAP = "  "
_HEAD = ("VM", "HOST", "STAGE", "IMAGE", "TIME", "ADDRESS")
_RANK = {"bad": 0, "warn": 0, "good": 2}


@contextlib.contextmanager
def live_view(progress: Progress, styles: Mapping[str, Style], now: Callable[[], float]) -> Iterator[None]:
    """Show ``progress`` on the terminal until the block ends, then make room for the table that follows.

    ``styles``: role -> style (good, bad, warn, dim). ``now``: seconds since the start."""
    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False, soft_wrap=False)

    widest = [0] * len(_HEAD)

    def draw() -> RenderableType:
        return _View(progress, styles, now(), widest).render(max(3, console.height - 4), console.width)

    with (
        _unechoed(),
        Live(console=console, get_renderable=draw, auto_refresh=False, redirect_stdout=False, transient=True) as view,
        _refreshed(view, progress, now),
    ):
        yield


@contextlib.contextmanager
def _unechoed() -> Iterator[None]:
    """Keys typed meanwhile are not shown: an Enter, or the ^C of Ctrl-C, would shift the picture by a line."""
    try:
        fd = sys.stdin.fileno()
        if os.tcgetpgrp(fd) != os.getpgrp():
            raise OSError  # in the background, touching the terminal would stop the process
        saved = termios.tcgetattr(fd)
    except (OSError, ValueError, termios.error):
        yield
        return
    quiet = list(saved)
    quiet[3] = int(quiet[3]) & ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(fd) == os.getpgrp():
                termios.tcsetattr(fd, termios.TCSANOW, saved)


@contextlib.contextmanager
def _refreshed(view: Live, progress: Progress, now: Callable[[], float]) -> Iterator[None]:
    """Redraw when something changed, `_PER_SECOND` times a second at most, and once a second for the clock."""
    ended = threading.Event()

    def work() -> None:
        shown = (-1, -1)
        while not ended.wait(1 / _PER_SECOND):
            state = progress.version, int(now())
            if state != shown:
                shown = state
                view.refresh()

    thread = threading.Thread(target=work, name="live view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


class _View:
    """One picture. ``widest`` is kept from picture to picture: columns grow as needed and never jump back."""

    def __init__(
        self, progress: Progress, styles: Mapping[str, Style], now: float, widest: list[int] | None = None
    ) -> None:
        self.progress = progress
        self.styles = styles
        self.widest = [0] * len(_HEAD) if widest is None else widest
        self.now = max(now, progress.t) if progress.done_s is None else progress.t
        self.columns = 80

    def render(self, room: int, columns: int) -> RenderableType:
        """The picture: ``room`` rows at most, ``columns`` wide. What does not fit of the last column is cut off."""
        self.columns = columns
        ranked = self._rows(wide=columns >= _WIDE)
        left_out = max(0, len(ranked) - room)
        if left_out:
            # What went wrong first, then what is under way, then what is done: a small window shows what matters.
            ranked.sort(key=lambda pair: pair[0])
        rows = [tuple(Text(name, "bold") for name in _HEAD), *(row for _, row in ranked[: len(ranked) - left_out])]
        self.widest[:] = [max(old, *(row[i].cell_len for row in rows)) for i, old in enumerate(self.widest)]
        widths = list(self.widest)
        fixed = sum(w + len(_GAP) for w in widths[:-1])
        if fixed > columns:  # room that only an earlier picture needed
            widths = [max(row[i].cell_len for row in rows) for i in range(len(_HEAD))]
        widths[-1] = max(0, min(widths[-1], columns - sum(w + len(_GAP) for w in widths[:-1])))
        more = [Text(f"and {left_out} more", self.styles.get("dim", ""))] if left_out else []
        return Group(self._head(), *(self._line(row, widths) for row in rows), *more)

    def _line(self, row: tuple[Text, ...], widths: list[int]) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for cell, wide in zip(row, widths, strict=True):
            if wide:
                part = cell.copy()
                part.truncate(wide, overflow="ellipsis", pad=True)
                line.append_text(part).append(_GAP)
        line.rstrip()
        return line

    def _rows(self, *, wide: bool) -> list[tuple[int, tuple[Text, ...]]]:
        """A row for each VM, and for each host that has none yet, with its rank."""
        rows: list[tuple[int, tuple[Text, ...]]] = []
        by_host: dict[str, list[VmState]] = {}
        for vm in tuple(self.progress.vms.values()):
            by_host.setdefault(vm.host, []).append(vm)
        for host in tuple(self.progress.hosts.values()):
            here = by_host.get(host.name, [])
            rows += [(_RANK.get(vm.role, 1), self._vm(vm, host, wide=wide)) for vm in here]
            if not here:
                rows.append((_RANK.get(host.role, 1), self._host(host, wide=wide)))
        return rows

    def _head(self) -> Text:
        vms, hosts = tuple(self.progress.vms.values()), tuple(self.progress.hosts.values())
        ready = sum(vm.stage == "ready" for vm in vms)
        bad = sum(vm.role == "bad" for vm in vms)
        refused = sum(host.role == "bad" for host in hosts)
        lost = sum(host.away for host in hosts)
        text = Text(f"{self.progress.session or 'session'}  {human_duration(self.now)}  ", no_wrap=True)
        of = f" of {self.progress.wanted}" if self.progress.wanted else ""
        text.append(f"{ready}{of} ready", self.styles.get("good", "") if ready else "")
        if bad:
            text.append(f"  {bad} failed", self.styles.get("bad", ""))
        if refused:
            text.append(f"  {count(refused, 'host')} refused", self.styles.get("bad", ""))
        if lost:
            text.append(f"  {count(lost, 'host')} lost", self.styles.get("warn", ""))
        moving = [host for host in hosts if host.done < host.needed]
        if moving:
            done, needed = sum(host.done for host in hosts), sum(host.needed for host in hosts)
            text.append(f"  {human_size(done)} of {human_size(needed)} sent")
            if rate := sum(host.rate for host in moving):
                text.append(f", {human_size(int(rate))}/s")
        text.truncate(self.columns, overflow="ellipsis")
        return text

    def _host(self, host: HostState, *, wide: bool) -> tuple[Text, ...]:
        stage, image = self._stage(host.stage, host.role), self._transfer(host, wide=wide)
        return (Text(), Text(host.name), stage, image, Text(), Text(self._note(host)))

    def _vm(self, vm: VmState, host: HostState, *, wide: bool) -> tuple[Text, ...]:
        lost = host.away
        stage = self._stage("unknown", "warn") if lost else self._stage(vm.stage, vm.role)
        if lost:
            boot = ""
        elif vm.boot_s is not None:
            boot = human_duration(vm.boot_s)
        elif vm.booting_at is not None and vm.role != "bad":
            boot = human_duration(max(0.0, self.now - vm.booting_at))
        else:
            boot = ""
        image = self._transfer(host, wide=wide)
        took = Text(f"{boot} {vm.accel.upper()}" if boot else "")
        return (
            Text(vm.name),
            Text(host.name),
            stage,
            image,
            took,
            Text(vm.note or self._note(host) * lost or vm.address),
        )

    def _note(self, host: HostState) -> str:
        """What there is to say of a host; when contact is lost, first when it is tried again."""
        if host.retry_at is None or not host.away:
            return host.note
        return f"again in {max(0, round(host.retry_at - self.now))} s: {host.note}"

    def _stage(self, text: str, role: str) -> Text:
        return Text(text, self.styles.get(role, ""))

    def _transfer(self, host: HostState, *, wide: bool) -> Text:
        if not host.needed:
            return Text()
        if host.done >= host.needed:
            took = f" in {human_duration(host.seconds)}" if host.seconds else ""
            return Text(f"{human_size(host.needed)}{took}", self.styles.get("dim", ""))
        rate = f" {human_size(int(host.rate))}/s" if host.rate else ""
        if not wide:
            return Text(f"{100 * host.done // host.needed} %{rate}")
        full = _BAR * host.done // host.needed
        bar = Text("#" * full, self.styles.get("good", "")).append("." * (_BAR - full), self.styles.get("dim", ""))
        return bar.append(f" {human_size(host.done)} of {human_size(host.needed)}{rate}", "none")
