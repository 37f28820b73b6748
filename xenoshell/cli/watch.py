"""What runs: ps, logs, and the ways into a guest."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from ..units import human_duration, human_size, parse_size
from .command import Cli, command
from .common import OneVm, Reason, connector, inventory, reaching, show_reasons
from .exits import INTERRUPTED, NOTHING_DONE, Stop
from .output import Cell, colours, json_line

if TYPE_CHECKING:
    from ..deploy.operate import Target
    from ..deploy.report import VmReport
    from ..fleet.inventory import Host
    from ..wire.values import VmStatus

SECTION = "Running VMs"

#: How long a host may take to answer a person who waits for it.
CONNECT_S = 20.0
#: Bytes of a guest's line that are kept until it ends.
LONGEST_LINE = 64 << 10


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    command(app, "ps", section=SECTION)(ps)
    command(app, "logs", section=SECTION)(logs)
    command(app, "console", section=SECTION)(console)
    command(app, "ssh", section=SECTION, extra=True)(ssh)


def ps(
    cli: Cli,
    session: Annotated[str | None, typer.Argument(metavar="[SESSION]", help="One session; left out: all.")] = None,
) -> None:
    """What runs where, as the hosts say it now."""
    from ..deploy import report
    from ..deploy.record import SessionStore

    sessions = SessionStore(cli.paths.sessions)
    names = sessions.names() if session is None else (session,)
    hosts = inventory(cli.paths)
    reports = cli.run(reaching(cli.paths, lambda reach: report.ps(sessions, names, hosts, reach)))
    places = {host.name: host for host in hosts.hosts}
    if cli.out.json:
        cli.out.document([_document(r, places.get(r.host)) for r in reports])
    elif not reports:
        cli.out.note("nothing is deployed: `xenoshell deploy FILE`" if not names else f"no VMs: {', '.join(names)}")
        for name in names:
            cli.out.note(f"`xenoshell resume {name}` goes on with it, `xenoshell destroy {name}` forgets it")
    else:
        cli.out.table(
            (
                *("VM", "HOST", "PLACE", "STATE", "ACCEL", "ADDRESS"),
                *("UP", "CPU", "MEMORY", "NET IN/OUT", "SILENT", "LEASE", "COST"),
            ),
            [_row(r, places.get(r.host)) for r in reports],
            spare=("NET IN/OUT", "PLACE", "CPU", "MEMORY", "ACCEL", "SILENT", "LEASE", "UP"),
        )
        spent, hourly = report.totals(reports)
        if hourly.each:
            cli.out.note(f"{spent} so far, {hourly} an hour until they are destroyed")
    _explain(cli, reports)
    if reports and all(r.state == "unknown" for r in reports):
        raise Stop(NOTHING_DONE)


def _explain(cli: Cli, reports: Sequence[VmReport]) -> None:
    """Below the table: why VMs are unknown, gone, or ended by themselves, those with the same reason together."""
    show_reasons(
        cli.out,
        [
            Reason(
                r.host if r.state == "unknown" else f"{r.session}/{r.vm}", r.session, r.vm, r.host, r.message, r.remedy
            )
            for r in reports
            if r.message and r.cause not in ("", "stopped")
        ],
    )


def _row(report: VmReport, host: Host | None) -> tuple[Cell | str, ...]:
    from .hosts import place_of

    head = (f"{report.session}/{report.vm}", report.host, place_of(host) if host else "", _state(report))
    status, cost = report.status, Cell(_cost(report), right=True)
    if status is None:
        return (*head, *[""] * 8, cost)
    usage, runs = status.usage, status.state in ("booting", "running", "ready", "stopping")
    return (
        *head,
        status.accel.upper() if runs else "",
        report.address,
        Cell(human_duration(usage.uptime_s) if runs else "", right=True),
        Cell(human_duration(usage.cpu_s), right=True),
        Cell(f"{usage.memory_mib} MiB" if runs else "", right=True),
        Cell(f"{human_size(usage.net_in)}/{human_size(usage.net_out)}", right=True),
        Cell(human_duration(status.silent_s) if runs else "", right=True),
        Cell(human_duration(status.lease_left_s) if status.lease_left_s >= 0 else "none", right=True),
        cost,
    )


def _cost(report: VmReport) -> str:
    """What the VM has cost so far; an estimate is marked, since its host may have ended it."""
    from ..deploy.money import show

    if report.cost is None:
        return ""
    if not report.cost.per_hour:
        return "free"
    return ("~" if report.state == "unknown" else "") + show(report.cost.so_far, report.cost.currency)


def _state(report: VmReport) -> Cell:
    if report.state == "unknown":
        since = f" for {human_duration(time.time() - report.last_heard)}" if report.last_heard else ""
        return Cell(f"unknown{since}" + (f" (was {report.last_known})" if report.last_known else ""), "warn")
    text = f"{report.state} ({report.cause})" if report.cause else report.state
    if report.state in ("exited", "failed", "gone"):
        return Cell(text, "dim" if report.cause == "stopped" else "bad")
    return Cell(text, "good" if report.state == "ready" else "warn" if report.cause else "")


def _document(report: VmReport, host: Host | None) -> dict[str, Any]:
    place = host.place.model_dump(exclude_none=True) if host else None
    document: dict[str, Any] = report.to_json()
    return document | {"place": place}


def logs(
    cli: Cli,
    which: OneVm,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what the guest prints from now on.")
    ] = False,
    tail: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Only the end, such as 16KiB; left out: all that is kept.")
    ] = None,
) -> None:
    """What a guest printed on its console, from its first byte on."""
    from ..console.attach import write
    from ..console.filter import Filter, Mode

    try:
        size = 0 if tail is None else parse_size(tail)
    except ValueError as error:
        raise BadInput(f"--tail: {error}") from None
    target, host = _find(cli, which)
    coloured = not cli.out.json and not cli.out.plain and colours(sys.stdout)
    safe = Filter(Mode.COLOUR if coloured else Mode.TEXT)
    made = json_lines(target.session, target.vm) if cli.out.json else lambda data, last: data
    stdout = sys.stdout.fileno()

    async def copy() -> None:
        # A reader that takes its time (`less`) must not stop the loop: the helper would take us for gone.
        sys.stdout.flush()
        async with (
            connector(cli.paths) as reach,
            await reach.connect(host, CONNECT_S) as link,
            await link.logs(target.entry.spec.id, follow, size) as stream,
        ):
            while data := await stream.read():
                await write(stdout, made(safe.feed(data), False))
            await write(stdout, made(safe.finish(), True))
            if coloured:
                await write(stdout, b"\n")  # the guest's last line is seldom whole; the prompt is to stand on its own

    try:
        cli.run(copy())
    except KeyboardInterrupt:
        if not follow:
            raise
        sys.stdout.flush()
        raise Stop(INTERRUPTED) from None  # the way to end it: nothing to say


def json_lines(session: str, vm: str) -> Callable[[bytes, bool], bytes]:
    """A function of (what a guest printed next, whether that was all): its whole lines, each as a JSON object.

    A line that is longer than `LONGEST_LINE` comes in pieces: a guest need not end it ever."""
    held: list[bytes] = []
    size = 0

    def made(data: bytes, last: bool) -> bytes:
        nonlocal held, size
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join([*held, whole[0]])
            held, size = [], 0
        if rest:
            held.append(rest)
            size += len(rest)
        if size and (last or size > LONGEST_LINE):
            whole.append(b"".join(held))
            held, size = [], 0
        return "".join(json_line({"session": session, "vm": vm, "line": line.decode()}) for line in whole).encode()

    return made


def console(
    cli: Cli,
    which: OneVm,
    escape: Annotated[str, typer.Option(metavar="KEY", help="The key that leaves: ^X, a character, or none.")] = "^]",
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what the guest prints to this file too, as text.")
    ] = None,
) -> None:
    """Sit down at a guest's serial console. Ctrl-] leaves; the guest goes on.

    A serial console does not learn the window's size: in the guest, `resize`, or `stty rows R cols C`.
    """
    from ..console.attach import REPLAY, Ending, attach, escape_name, parse_escape
    from ..console.saved import saved

    key = parse_escape(escape)
    target, host = _find(cli, which)

    async def sit() -> Ending:
        async with (
            connector(cli.paths) as reach,
            await reach.connect(host, CONNECT_S) as link,
            await link.console(target.entry.spec.id, REPLAY) as stream,
            AsyncExitStack() as more,
        ):
            keeper = await more.enter_async_context(saved(stream, save)) if save else None
            leave = f"; {escape_name(key)} leaves" if key and sys.stdin.isatty() else ""
            cli.out.note(f"{target} on {host.name}: console{leave}")
            sys.stdout.flush()
            ending = await attach(keeper or stream, escape=key)
            if keeper is not None and keeper.failure is not None:
                cli.out.warn(f"{save}: {keeper.failure.strerror}; saved only the first {human_size(keeper.written)}")
            elif keeper is not None:
                cli.out.note(f"saved {human_size(keeper.written)} to {save}")
            return ending

    ending = cli.run(sit())
    words = {
        Ending.ESCAPED: f"left the console of {target}; it goes on",
        Ending.CLOSED: f"{target}: its console has ended; `xenoshell ps {target.session}` says why",
        Ending.INPUT_ENDED: f"the input has ended; {target} goes on",
    }
    if ending in words:
        cli.out.note(words[ending])


def ssh(
    cli: Cli,
    which: OneVm,
    rest: Annotated[list[str] | None, typer.Argument(metavar="[-- SSH-ARGUMENT...]", help="Passed on to ssh.")] = None,
    *,
    user: Annotated[str, typer.Option("--user", "-l", metavar="NAME", help="Who to be in the guest.")] = "root",
    through_host: Annotated[bool, typer.Option("--through-host", help="Go through the host in any case.")] = False,
) -> None:
    """Log in to a guest with the system's ssh; the guest's host keys are known from its console."""
    from . import guestssh

    target, host = _find(cli, which)
    status, at, way = cli.run(_look(cli, target, host))
    forward = guestssh.forward_of(status.forwards, str(target))
    known_hosts = cli.paths.sessions / target.session / "known_hosts"
    lines = guestssh.known_hosts_lines(status.id, status.host_keys)
    if lines:
        guestssh.note_keys(known_hosts, status.id, lines)
    else:
        cli.out.warn(f"{target} has shown no host keys on its console (yet): ssh asks whether to trust what it finds")
    local = at in ("localhost", "::1") or at.startswith("127.")
    anywhere = forward.bind in ("0.0.0.0", "::")  # noqa: S104  compared, not bound
    direct = (local or not forward.bind.startswith("127.")) and not through_host
    argv = guestssh.arguments(
        alias=status.id,
        user=user,
        address=(at if anywhere else forward.bind) if direct else "127.0.0.1" if anywhere else forward.bind,
        port=forward.host,
        known_hosts=known_hosts,
        strict=bool(lines),
        way=None if direct else way,
        rest=rest or (),
    )
    cli.out.detail(" ".join(argv))
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606  so that ssh has the terminal, and its exit code is ours
    except FileNotFoundError:
        raise BadInput(
            "there is no `ssh` program here", "install openssh-client; `xenoshell console` works without"
        ) from None


async def _look(cli: Cli, target: Target, host: Host) -> tuple[VmStatus, str, Any]:
    """The VM's status, the address at which its host is reached, and OpenSSH's way to that host."""
    import asyncio

    from ..fleet.sshconfig import files_for, resolve
    from ..wire.causes import Failure
    from .guestssh import Way

    async with connector(cli.paths) as reach, await reach.connect(host, CONNECT_S) as link:
        statuses: Sequence[VmStatus] = await link.vm_list()
        at = host.address or link.address
    found = next((s for s in statuses if s.id == target.entry.spec.id), None)
    if found is None:
        raise Failure("not-found", f"{host.name} has no VM {target.vm}")
    files = files_for(host, cli.paths.known_hosts)
    route = await asyncio.to_thread(resolve, host.target, files)
    goal = f"{host.target.user}@{host.target.host}" if host.target.user else host.target.host
    config = files.config[0] if host.ssh_options.config is not None else None
    return found, at, Way(goal, route.port, config, route.known_hosts, files.identity)


def _find(cli: Cli, which: str) -> tuple[Target, Host]:
    """The one VM that ``which`` names, and its host."""
    from ..deploy import operate
    from ..deploy.record import SessionStore

    target = operate.target(SessionStore(cli.paths.sessions), which)
    return target, inventory(cli.paths).get(target.host)
