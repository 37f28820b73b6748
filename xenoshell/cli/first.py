"""First steps: the demonstration, the lab, and what this machine has and lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .command import Cli, command, group
from .common import Accel, accel_of, count, inventory, reaching
from .output import Cell

if TYPE_CHECKING:
    from ..lab import HostStatus

SECTION = "First steps"


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    lab = group("XenoServers on this very machine: real sshd, real QEMU.")
    command(app, "demo", section=SECTION)(demo)
    command(app, "doctor", section=SECTION)(doctor)
    app.add_typer(lab, name="lab", rich_help_panel=SECTION)
    command(lab, "up")(lab_up)
    command(lab, "status")(lab_status)
    command(lab, "down")(lab_down)


def demo(
    cli: Cli,
    *,
    hosts: Annotated[
        int, typer.Option(min=1, max=50, metavar="N", help="How many XenoServers; left out: 3.", show_default=False)
    ] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running, and say what to try next.")] = False,
    accel: Accel = "auto",
) -> None:
    """Three XenoServers on this machine, a small web server on each, and away again."""
    from .demonstration import demonstrate

    demonstrate(cli, hosts, keep=keep, accel=accel_of(accel))


def doctor(cli: Cli) -> None:
    """What this machine has and lacks for running xenoshell and its lab."""
    from ..doctor import examine
    from .lines import finish_check, show_line

    lines = examine(cli.paths)
    if not cli.out.json:
        for line in lines:
            show_line(cli.out, line)
    finish_check(cli.out, "this machine", lines)


def lab_up(
    cli: Cli,
    hosts: Annotated[int, typer.Option(metavar="N", help="How many XenoServers, at least.")] = 3,
    wan: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", help="Put a slow, far link before each: a name, or rtt=150ms,up=20mbit; or none."
        ),
    ] = None,
) -> None:
    """Start XenoServers on this machine and enter them in the inventory."""
    from .. import lab

    made = lab.up(cli.paths, hosts, wan)
    _show(cli, lab.status(cli.paths))
    cli.out.note(f"{count(len(made.hosts), 'host')} up; they are in `xenoshell hosts list` until `xenoshell lab down`")


def lab_status(cli: Cli) -> None:
    """Which lab hosts run, and where."""
    from .. import lab

    hosts = lab.status(cli.paths)
    _show(cli, hosts)
    if not hosts:
        cli.out.note("no lab is up; `xenoshell lab up` starts one")


def lab_down(cli: Cli) -> None:
    """Stop the lab and remove every process, port and file of it."""
    from .. import lab
    from ..fleet import facts

    hosts = lab.status(cli.paths)
    if vms := sum(host.vms for host in hosts):
        cli.confirm(f"destroys {count(vms, 'VM')} on {count(sum(h.vms > 0 for h in hosts), 'host')} of the lab")
    number = lab.down(cli.paths)
    for host in hosts:
        facts.forget(host.name, cli.paths)  # the next lab's hosts have the same names, and hold nothing
    forgotten = _forget(cli, [host.name for host in hosts])
    if cli.out.json:
        cli.out.document({"hosts": number, "vms": vms, "forgotten": forgotten})
    cli.out.note(f"{count(number, 'host')} taken down" if number else "no lab is up")


def _forget(cli: Cli, hosts: Sequence[str]) -> list[str]:
    """Take VMs of hosts that are gone for good off the records of their sessions; returns their names."""
    from ..deploy import operate
    from ..deploy.record import SessionStore

    sessions = SessionStore(cli.paths.sessions)
    gone = [t for name in sessions.names() for t in operate.targets(sessions, name) if t.host in hosts]
    if gone:
        left = inventory(cli.paths)
        cli.run(reaching(cli.paths, lambda reach: operate.operate("destroy", gone, left, reach, sessions, forget=True)))
    return [str(t) for t in gone]


def _show(cli: Cli, hosts: tuple[HostStatus, ...]) -> None:
    if cli.out.json:
        cli.out.document(
            [
                {
                    "host": h.name,
                    "port": h.port,
                    "up": h.server and h.relay is not False,
                    "wan": h.wan,
                    "vms": h.vms,
                    "city": h.place.city,
                    "country": h.place.country,
                    "region": h.place.region,
                }
                for h in hosts
            ]
        )
    elif hosts:
        cli.out.table(
            ("HOST", "PLACE", "PORT", "STATE", "LINK", "VMS"),
            [
                (
                    h.name,
                    f"{h.place.city}, {h.place.region}",
                    Cell(str(h.port), right=True),
                    Cell("up", "good") if h.server and h.relay is not False else Cell("down", "bad"),
                    h.wan or "local",
                    Cell(str(h.vms), right=True),
                )
                for h in hosts
            ],
        )
