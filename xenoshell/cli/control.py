"""Orders to VMs that are deployed: stop, start, restart, destroy, renew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput
from .command import Cli, command
from .common import Reason, Where, inventory, reaching, show_reasons
from .exits import Stop
from .output import Cell

if TYPE_CHECKING:
    from ..deploy.operate import VmResult

SECTION = "Running VMs"

Wait = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        show_default=False,
        help="How long to wait until it is so; left out: 60; 0: only give the order.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this family to ``app``."""
    for name, function in (("stop", stop), ("start", start), ("restart", restart), ("destroy", destroy)):
        command(app, name, section=SECTION)(function)
    command(app, "renew", section=SECTION)(renew)


def stop(cli: Cli, which: Where, wait: Wait = 60.0) -> None:
    """Shut VMs down: the guest is asked first, then made to. Disks stay, and so does the price."""
    _order(cli, "stop", which, wait_s=wait, ask=True)


def start(cli: Cli, which: Where, wait: Wait = 60.0) -> None:
    """Boot VMs that have stopped or exited."""
    _order(cli, "start", which, wait_s=wait)


def restart(cli: Cli, which: Where, wait: Wait = 60.0) -> None:
    """Shut VMs down and boot them again."""
    _order(cli, "restart", which, wait_s=wait, ask=True)


def destroy(
    cli: Cli,
    which: Where,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also take VMs off the record whose host does not answer.")
    ] = False,
) -> None:
    """Remove VMs and their disks for good. The session's history stays."""
    _order(cli, "destroy", which, ask=True, forget=forget)


def renew(
    cli: Cli,
    which: Where,
    lease: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Such as 24h; left out: what the session file says.")
    ] = None,
) -> None:
    """Give VMs a new lease: their hosts keep them that long without hearing from you."""
    from ..units import parse_duration

    try:
        lease_s = None if lease is None else parse_duration(lease)
    except ValueError as error:
        raise BadInput(f"--lease: {error}") from None
    _order(cli, "renew", which, lease_s=lease_s)


def _order(
    cli: Cli,
    verb: str,
    which: str,
    *,
    wait_s: float = 60.0,
    lease_s: float | None = None,
    forget: bool = False,
    ask: bool = False,
) -> None:
    from ..deploy import operate
    from ..deploy.record import SessionStore

    sessions = SessionStore(cli.paths.sessions)
    chosen = operate.targets(sessions, which)
    if not chosen:
        if verb != "destroy":
            raise BadInput(f"{which} has no VMs", f"`xenoshell resume {which}` goes on with its deployment")
        with sessions.locked(which):
            sessions.forget(which)
        cli.out.note(f"{which} had no VMs; it is forgotten")
    elif ask:
        cli.confirm(operate.blast_radius(verb, chosen))
    if verb == "renew" and lease_s is None:
        lease_s = _lease_of(chosen)
    hosts = inventory(cli.paths)
    results = cli.run(
        reaching(
            cli.paths,
            lambda reach: operate.operate(
                verb, chosen, hosts, reach, sessions, lease_s=lease_s or 0.0, forget=forget, wait_s=wait_s
            ),
        )
    )
    _show(cli, verb, results)
    if code := operate.exit_code(results):
        raise Stop(code)


def _lease_of(chosen: Sequence[object]) -> float:
    """The lease that the session file gave these VMs."""
    from ..deploy.operate import Target

    leases = {t.entry.spec.lease_s for t in chosen if isinstance(t, Target) and t.entry.spec.lease_s}
    if not leases:
        raise BadInput("the session file gives no lease", "say how long: --lease 24h")
    return max(leases)


def _show(cli: Cli, verb: str, results: Sequence[VmResult]) -> None:
    if cli.out.json:
        cli.out.document([r.to_json() for r in results])
        return
    if not results:
        return
    cli.out.table(
        ("VM", "HOST", "NOW"),
        [(f"{r.session}/{r.vm}", r.host, Cell(r.state or "failed", "good" if r.done else "bad")) for r in results],
    )
    show_reasons(
        cli.out,
        [
            Reason(
                f"{r.session}/{r.vm}",
                r.session,
                r.vm,
                r.host,
                f"{r.message} [{r.cause}]" if r.cause else r.message,
                r.remedy if not r.done else "",
            )
            for r in results
            if not r.done or r.state == "forgotten"
        ],
    )
    if verb == "destroy" and (lost := [f"{r.session}/{r.vm}" for r in results if r.state == "unknown"]):
        which = lost[0] if len(lost) == 1 else lost[0].partition("/")[0]
        cli.out.note(f"what is unknown stays on the record; if its host is gone: `xenoshell destroy {which} --forget`")
